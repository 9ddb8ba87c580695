#!/usr/bin/env bash
# One NVIDIA GPU in at most eight minutes: correctness, determinism, speed beside PyTorch.
#
#     benchmarks/gpu.sh [--tiny]
#
# Needs jax, flax, optax and (for the comparison) torch; no network.  Each part has a limit of its
# own, and what would pass the eight minutes is left out and said.  --tiny tries all of it on
# networks for which a CPU is enough.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=.
export XLA_PYTHON_CLIENT_PREALLOCATE=${XLA_PYTHON_CLIENT_PREALLOCATE:-false}
tiny="" device=cuda
[ "${1:-}" = "--tiny" ] && tiny=--tiny device=cpu
total=${GPU_SECONDS:-470}
cache=$(mktemp -d)
trap 'rm -rf "$cache"' EXIT
failed=0 left=""

# part NAME SECONDS COMMAND...: runs it if so many seconds are left; its output is the result.
part() {
  local name=$1 limit=$2
  shift 2
  echo
  echo "== $name (at $SECONDS s)"
  if [ $((SECONDS + limit)) -gt "$total" ]; then
    echo "left out: $limit s would pass the $total s of all"
    left="$left; $name"
    return
  fi
  timeout "$limit" "$@" 2>&1 | grep -vE "^(W|I|E)[0-9]{4} "
  local code=${PIPESTATUS[0]}
  if [ "$code" -ne 0 ]; then
    echo "FAILED with code $code (124: it took more than $limit s)"
    failed=1
  fi
}

date -u +"%Y-%m-%d %H:%M UTC"
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
git rev-parse --short HEAD 2>/dev/null || true

if [ -n "$tiny" ]; then
  cifar=8 imagenet=4 torch_cifar="--net=tiny" torch_imagenet="--net=tiny" steps="--num_steps=3 --repeats=1"
else
  cifar=512 imagenet=128 torch_cifar="--net=cifar10" torch_imagenet="--net=imagenet64" steps=""
fi
part "golden arrays: float32 with and without TF32, bfloat16, cuDNN attention on and off" 80 \
  python benchmarks/gpu.py golden
part "determinism flags" 60 \
  env XLA_FLAGS="--xla_gpu_deterministic_ops=true ${XLA_FLAGS:-}" python benchmarks/gpu.py deterministic $tiny
part "CIFAR-10 DDPM++, compiled cold" 100 \
  python benchmarks/gpu.py speed --net=cifar10 --batch=$cifar --cache="$cache" $tiny $steps
part "CIFAR-10 DDPM++ again, compiled programs from the cache" 60 \
  python benchmarks/gpu.py speed --net=cifar10 --batch=$cifar --cache="$cache" --repeats=1 $tiny $steps
part "CIFAR-10 DDPM++ in PyTorch, eager" 40 \
  python benchmarks/pytorch_ddpmpp.py $torch_cifar --batch=$cifar --device=$device --dtype=bfloat16
part "CIFAR-10 DDPM++ in PyTorch, torch.compile" 90 \
  python benchmarks/pytorch_ddpmpp.py $torch_cifar --batch=$cifar --device=$device --dtype=bfloat16 --compile
part "ImageNet-64 ADM, compiled cold" 120 \
  python benchmarks/gpu.py speed --net=imagenet64 --batch=$imagenet --cache="$cache" $tiny $steps
part "ImageNet-64 ADM in PyTorch, eager" 40 \
  python benchmarks/pytorch_ddpmpp.py $torch_imagenet --batch=$imagenet --device=$device --dtype=bfloat16
part "ImageNet-64 ADM in PyTorch, torch.compile" 90 \
  python benchmarks/pytorch_ddpmpp.py $torch_imagenet --batch=$imagenet --device=$device --dtype=bfloat16 --compile
echo
echo "done in $SECONDS s; $([ $failed = 0 ] && echo 'everything that ran is as it should be' || echo 'something FAILED')"
[ -n "$left" ] && echo "left out for want of time (GPU_SECONDS=$total)$left"
exit $failed
