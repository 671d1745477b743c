# Sourced by the other scripts: makes .venv in the clone and installs umamba-seg into it. Runs again at no cost.
# A machine with an NVIDIA GPU gets torch's default (CUDA) build, any other a CPU build. pip's own variables
# (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS) are honoured.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

TORCH=2.13.0
TRITON=3.7.1  # its release of triton, which only GPU builds bring along; the tests compile the GPU kernels everywhere
CPU_INDEX=https://download.pytorch.org/whl/cpu

say() { printf '== %s\n' "$*" >&2; }
fail() { printf 'umamba-seg: %s\n' "$*" >&2; exit 2; }

command -v python3 >/dev/null || fail "python3 is missing; install Python 3.11 or newer (Debian: apt install python3 python3-venv)"
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$(python3 --version) is too old; install Python 3.11 or newer"
python3 -c 'import venv, ensurepip' 2>/dev/null ||
    fail "Python's venv module is missing; install it (Debian: apt install python3-venv)"

pip() { .venv/bin/python -m pip --quiet --disable-pip-version-check "$@"; }

torch_version() { .venv/bin/python -c 'import importlib.metadata as m; print(m.version("torch"))'; }

install_torch() {
    if nvidia-smi >/dev/null 2>&1; then
        say "an NVIDIA GPU is here: installing torch with CUDA (several GB)"
        pip install "torch==$TORCH"
        .venv/bin/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
            say "but torch does not see the GPU: its driver may be too old; training will run on the CPU"
    else
        say "no NVIDIA GPU: installing the CPU build of torch $TORCH"
        pip install "torch==$TORCH+cpu" 2>/dev/null || {
            say "pip's index has no CPU build, taking it from $CPU_INDEX"
            pip install "torch==$TORCH" torchvision --index-url "$CPU_INDEX" --retries 1
        } || {
            say "that failed: installing the build of pip's own index instead (several GB, with CUDA)"
            pip install "torch==$TORCH"
        }
    fi
}

changed() { find pyproject.toml setup.py kernels/umamba_kernels/native/src -newer .venv/installed; }

if [ ! -e .venv/installed ] || [ -n "$(changed)" ]; then
    say "making .venv and installing umamba-seg into it (a minute or two)"
    [ -x .venv/bin/python ] || python3 -m venv .venv
    torch_version >/dev/null 2>&1 || install_torch
    # Naming the torch that is there keeps pip from exchanging it: nnunetv2 draws in torchvision, which pins a torch.
    case "$(uname) $(torch_version)" in
        "Linux $TORCH"*) pip install --editable '.[test]' "torch==$(torch_version)" "triton==$TRITON" ;;
        *) pip install --editable '.[test]' "torch==$(torch_version)" ;;
    esac
    touch .venv/installed
fi
