#!/bin/sh
# Everything that needs a GPU, in one command, on a machine without Rust and without a network:
#
#     sh scripts/gpu-check.sh muster.xz [FOLDER]
#
# `muster.xz` is a stripped release build with CUDA, compressed (scripts/gpu-pack.sh makes it). The
# results go into FOLDER [gpu-results]: gpu-results.md, to be put into docs/gpu-results.md, and the full
# output of each part. Parts that cannot run here are named as skipped, and so are those for which no time
# is left of ten minutes; a part that fails does not keep the others from running, and makes the exit code
# 1. Most of the time goes into compiling and tuning kernels, which are kept in FOLDER/kernels, or where
# MUSTER_KERNELS says: a second run begins with them, and gets further.
#
# MUSTER_CHECK_ONLY="gpt2 torch-gpt2-eager" runs these parts alone, each as long as there is time, and
# MUSTER_CHECK_SECONDS says how long that is altogether [540].
#
# With MUSTER_CHECK_DEVICE=cpu the small jobs run on processors instead, which tries the script itself
# where there is no GPU.
set -u

pack=${1:?usage: sh scripts/gpu-check.sh muster.xz [FOLDER]}
out=${2:-gpu-results}
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
device=${MUSTER_CHECK_DEVICE:-cuda}
began=$(date +%s)
# Of ten minutes, what is left beside unpacking, the report, and parts that end late.
budget=${MUSTER_CHECK_SECONDS:-540}
only=${MUSTER_CHECK_ONLY:-}
ran=
failed=0
report=$out/gpu-results.md

say() { printf '%s\n' "$*" | tee -a "$report"; }

# part NAME SECONDS COMMAND...: runs it within its time, keeps its output, says how it went.
part() {
    name=$1 limit=$2
    shift 2
    if [ -n "$only" ]; then
        case " $only " in
            *" $name "*) limit=$budget ;;
            *) return 1 ;;
        esac
    fi
    ran="$ran $name "
    left=$((budget - $(date +%s) + began))
    if [ "$left" -lt 15 ]; then
        say "| $name | SKIPPED: there is no time left |"
        return 1
    fi
    [ "$limit" -lt "$left" ] || limit=$left
    start=$(date +%s)
    timeout -k 5 "$limit" "$@" >"$out/$name.log" 2>&1
    status=$?
    took=$(($(date +%s) - start))
    case $status in
        0) say "| $name | passed in $took s |" ;;
        124 | 137)
            say "| $name | FAILED: not over after $limit s (see $name.log) |"
            failed=1
            ;;
        *)
            why=$(grep -E '^(FAIL|error)' "$out/$name.log" | tail -n 1)
            say "| $name | FAILED with $status after $took s: $(echo "${why:-$(tail -n 1 "$out/$name.log")}" | cut -c 1-200) |"
            failed=1
            ;;
    esac
    [ "$status" -eq 0 ]
}

skipped() { say "| $1 | SKIPPED: $2 |"; }

muster=$work/muster
case $pack in
    *.xz) xz -dc "$pack" >"$muster" || python3 -c 'import lzma,sys,shutil; shutil.copyfileobj(lzma.open(sys.argv[1]), open(sys.argv[2],"wb"))' "$pack" "$muster" ;;
    *) cp "$pack" "$muster" ;;
esac
chmod +x "$muster"

# CUDA's libraries may be in Python's packages alone.
packages=$(python3 -c 'import site, sys; print("\n".join(site.getsitepackages() + [site.getusersitepackages()] + sys.path))' 2>/dev/null)
for folder in $packages; do
    for lib in "$folder"/nvidia/*/lib "$folder"/nvidia/lib; do
        [ -d "$lib" ] && LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$lib
    done
done
export LD_LIBRARY_PATH
device_code=$(find "${CUDA_PATH:-/usr/local/cuda}" /usr/local /usr/lib /opt $packages -name libdevice.10.bc 2>/dev/null | head -n 1)
if [ -n "$device_code" ]; then
    mkdir -p "$work/cuda/nvvm/libdevice"
    ln -s "$device_code" "$work/cuda/nvvm/libdevice/libdevice.10.bc"
    export CUDA_PATH="$work/cuda"
fi

: >"$report"
say "## $(date -u +%Y-%m-%d): $(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | sort | uniq -c | sed 's/^ *//' | paste -sd, -)"
say ""
say "Driver $(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1), $(python3 -c 'import torch; print("PyTorch", torch.__version__, "with CUDA", torch.version.cuda)' 2>/dev/null || echo "no PyTorch"), $("$muster" --version 2>/dev/null || echo "muster does not start")."
say ""
say "| part | |"
say "|---|---|"

part doctor 60 "$muster" doctor
part operations 150 "$muster" doctor --compute

# The same job on processors and on the GPU, and there by one rank and by two that share it, over NCCL.
mkdir -p "$work/digits" "$work/state"
cp "$root"/examples/digits/* "$work/digits/"
export MUSTER_KERNELS="${MUSTER_KERNELS:-$out/kernels}"
train() { # NAME DEVICE RANKS SECONDS ARGUMENTS...
    name=$1 where=$2 ranks=$3 limit=$4
    shift 4
    part "$name" "$limit" env MUSTER_STATE="$work/state/$name" "$muster" train "$work/digits/job.toml" --fresh \
        --workers "$ranks" --ranks-per-gpu "$ranks" --set "workers.device=$where" --set model.dropout=0.0 \
        --set workers.min=1 --set "workers.max=$ranks" --set train.steps=400 "$@"
}
bits() { grep -h '^bits' "$out/$1.log" | tail -n 1; }
same() { # WHAT NAME NAME: whether two runs ended in the same bits
    case $ran in *" $2 "*) ;; *) return ;; esac
    if [ -n "$(bits "$2")" ] && [ "$(bits "$2")" = "$(bits "$3")" ]; then
        say "| $1 | same bits |"
    else
        say "| $1 | FAILED: other bits: $(bits "$2"), $(bits "$3") |"
        failed=1
    fi
}
# By NCCL, or for want of it over the host.
way() {
    case $ran in *" $1 "*) ;; *) return ;; esac
    lines=$(grep -rh --include='p*.log' -e 'vectors go' "$work/state/$1" 2>/dev/null | sed 's/.*vectors go/vectors go/' | sort | uniq -c | sed 's/^ *//' | paste -sd, -)
    say "| how vectors went in $1 | ${lines:-over the host} |"
}
train digits-cpu cpu 1 60
on_cpu=$?
if train digits-gpu "$device" 1 180 && [ "$on_cpu" -eq 0 ]; then
    python3 - "$out/digits-cpu.log" "$out/digits-gpu.log" >>"$report" <<'PY'
import re, sys
def losses(path):
    return [(int(a), float(b)) for a, b in re.findall(r"step (\d+)/\d+ +loss ([0-9.]+)", open(path).read())]
cpu, gpu = map(dict, (losses(p) for p in sys.argv[1:3]))
common = sorted(set(cpu) & set(gpu))
worst = max((abs(cpu[s] - gpu[s]) / max(cpu[s], 1e-9) for s in common), default=None)
print(f"| losses of {len(common)} steps told, processors and GPU | largest relative difference {worst} |")
PY
fi
train digits-again "$device" 1 60 && same "two runs on the GPU" digits-gpu digits-again
train digits-two "$device" 2 90 && same "one rank and two on the GPU" digits-gpu digits-two
way digits-two

# One of two ranks is killed behind the first checkpoint, and the job goes on.
cat >"$work/killed.sh" <<'SH'
muster=$1 job=$2 device=$4
"$muster" train "$job" --fresh --workers 2 --ranks-per-gpu 2 --set "workers.device=$device" \
    --set workers.min=1 --set workers.max=2 --set model.dropout=0.0 \
    --set train.steps=400 --set checkpoint.every_steps=20 >"$3" 2>&1 &
job_process=$!
until grep -q "checkpoint" "$3" || ! kill -0 $job_process 2>/dev/null; do sleep 0.1; done
pkill -9 -n -f "^$muster rank"
wait $job_process
status=$?
cat "$3"
grep -q "^world 2" "$3" && exit $status
echo "no second world began"
exit 1
SH
part killed 120 env MUSTER_STATE="$work/state/killed" sh "$work/killed.sh" "$muster" "$work/digits/job.toml" "$out/killed.out" "$device" \
    && same "undisturbed, and one of two ranks killed" digits-two killed
way killed

# Whole models.
python3 - "$work/tokens" "$work/images.csv" <<'PY'
import array, random, sys
random.seed(0)
array.array("H", (random.randrange(50257) for _ in range(2_000_000))).tofile(open(sys.argv[1], "wb"))
with open(sys.argv[2], "w") as images:
    for row in range(640):
        pixels = (str(random.randrange(256)) for _ in range(3 * 32 * 32))
        images.write(",".join(pixels) + f",{row % 10}\n")
PY
cat >"$work/resnet.toml" <<'TOML'
name = "resnet"
[model]
family = "resnet"
width = 64
[data]
source = "images.csv"
shape = [3, 32, 32]
num_classes = 10
scale = 255.0
holdout = 0.1
[train]
seed = 0
global_batch_size = 256
logical_shards = 1
steps = 30
[optimizer]
kind = "adamw"
learning_rate = 0.001
[workers]
min = 1
max = 1
device = "cuda"
[checkpoint]
every_steps = 1000
TOML
gpt2() { # NAME RANKS SECONDS ARGUMENTS...
    name=$1 ranks=$2 limit=$3
    shift 3
    part "$name" "$limit" env MUSTER_STATE="$work/state/$name" "$muster" train "$root/examples/gpt2/gpt2-124m.toml" --fresh \
        --workers "$ranks" --ranks-per-gpu "$ranks" --set "data.source=$work/tokens" --set workers.device=cuda \
        --set workers.min=1 --set "workers.max=$ranks" --set train.global_batch_size=16 \
        --set "train.logical_shards=$ranks" --set train.steps=30 --set schedule.warmup_steps=2 "$@"
}
if [ "$device" = cuda ]; then
    gpt2 gpt2 1 240
    part resnet18 90 env MUSTER_STATE="$work/state/resnet" "$muster" train "$work/resnet.toml" --fresh
else
    skipped "gpt2 and resnet18" "they are for a GPU"
fi
# Beside PyTorch, model by model.
if python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
    for mode in eager compile; do
        for model in gpt2 resnet18; do
            batch=16
            [ "$model" = resnet18 ] && batch=256
            part "torch-$model-$mode" 90 python3 "$root/benches/peers/torch_gpu.py" --device cuda \
                --model "$model" --mode "$mode" --batch "$batch" --steps 30
        done
    done
else
    skipped torch "there is no PyTorch that sees a GPU"
fi

# What is less telling, as far as the time goes.
if [ "$device" = cuda ]; then
    gpt2 gpt2-two 2 90
    gpt2 gpt2-two-fast 2 60 --set train.reduction=fast
fi
train digits-fast "$device" 2 60 --set train.reduction=fast
part nccl 60 "$muster" doctor --nccl 2

for log in torch-gpt2-eager torch-gpt2-compile gpt2 gpt2-two gpt2-two-fast torch-resnet18-eager torch-resnet18-compile resnet18; do
    [ -f "$out/$log.log" ] || continue
    say ""
    say "\`$log\`:"
    say '```'
    say "$(grep -E '"model"|samples/s|^time|^rank time' "$out/$log.log" | tail -n 8)"
    say '```'
done
say ""
say "All of it took $(($(date +%s) - began)) s; the full output lies beside this file."
exit $failed
