"""Pictures, for papers and notebooks: sheets of images, curves, trajectories.

matplotlib and Pillow are loaded when something is drawn.
"""
