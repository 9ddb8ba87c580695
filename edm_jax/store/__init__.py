"""Models as this project writes them and reads them back: descriptions, checkpoints, files."""
