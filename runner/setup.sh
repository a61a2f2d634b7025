#!/bin/sh
# Checks that every tool which building, booting and testing needs is there, and installs what is missing.
# Says nothing and takes no time when all is there. Commands given as arguments, which few targets need, are of packages
# of the same name.
set -u

# Each package with a file that proves it is there: a path, a pattern, or the name of a command.
needs='
bochs               bochs
bochs-term          /usr/lib*/*/bochs/plugins/libbx_term_gui.so*
bochsbios           /usr/share/bochs/BIOS-bochs-latest
seabios             /usr/share/seabios/vgabios-stdvga.bin
grub-common         grub-mkrescue
grub-pc-bin         /usr/lib/grub/i386-pc/multiboot2.mod
grub-efi-amd64-bin  /usr/lib/grub/x86_64-efi/multiboot2.mod
xorriso             xorriso
mtools              mformat
qemu-system-x86     qemu-system-x86_64
ovmf                /usr/share/ovmf/OVMF.fd
gcc                 cc
binutils            ld
libc6-dev           /usr/lib*/*/crt1.o
'
for command in "$@"; do
    needs="$needs$command $command
"
done

present() {
    case $1 in
        /*) for file in $1; do [ -e "$file" ] && return 0; done; return 1 ;;
        *) command -v "$1" >/dev/null 2>&1 ;;
    esac
}

# Prints the packages that are missing, in one line.
missing() {
    echo "$needs" | while read -r package proof; do
        [ -z "$package" ] || present "$proof" || printf '%s ' "$package"
    done
}

if ! command -v cargo >/dev/null 2>&1; then
    echo "setup: Rust is missing. Install it as https://rustup.rs says, then try again." >&2
    exit 1
fi

packages=$(missing)
[ -z "$packages" ] && exit 0
packages=${packages% }
install="apt-get install --yes --no-install-recommends $packages"

if ! command -v apt-get >/dev/null 2>&1; then
    echo "setup: missing (names of the Debian packages): $packages" >&2
    echo "setup: this machine has no apt-get; install what carries these here, then try again." >&2
    exit 1
fi
if [ "$(id -u)" != 0 ]; then
    echo "setup: missing: $packages" >&2
    echo "setup: install them with:" >&2
    echo "    sudo apt-get update && sudo $install" >&2
    exit 1
fi

echo "setup: installing $packages"
export DEBIAN_FRONTEND=noninteractive
# A stale list is enough where the network is not: let the installation decide.
apt-get update --quiet --quiet </dev/null || echo "setup: apt-get update failed; going on with the old lists" >&2
# shellcheck disable=SC2086 # a list of packages
if ! apt-get --quiet --option DPkg::Lock::Timeout=300 --option Dpkg::Use-Pty=0 \
    install --yes --no-install-recommends $packages </dev/null; then
    echo "setup: apt-get could not install them. The command was:" >&2
    echo "    apt-get update && $install" >&2
    exit 1
fi
packages=$(missing)
if [ -n "$packages" ]; then
    echo "setup: installed, but what these should bring is still not there: $packages" >&2
    exit 1
fi
echo "setup: done"
