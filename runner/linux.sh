#!/bin/sh
# Fetches the Linux in which the image is run in KVM inside Bochs: Debian's kernel package, unpacked and not installed.
# Puts `vmlinuz`, and the modules of KVM by number in the order in which they are to be loaded, into the folder that is
# the argument. Says nothing and takes no time when all is there.
set -eu

dir=$1
[ -e "$dir/complete" ] && exit 0

fail() {
    echo "linux: $1" >&2
    exit 1
}

for command in apt-cache apt-get dpkg-deb strip; do
    command -v "$command" >/dev/null 2>&1 || fail "the command $command is missing: this needs a Debian-like machine, and binutils"
done

# The package that Debian's newest kernel is in, by the one that stands for it; nothing where the lists have none.
newest() {
    LC_ALL=C apt-cache depends --no-recommends --no-suggests linux-image-amd64 2>/dev/null |
        sed -n 's/^[ |]*Depends: \(linux-image-[0-9][^ ]*\)$/\1/p' | head -n 1
}

updated=
update() {
    [ -z "$updated" ] && [ "$(id -u)" = 0 ] || return 1
    updated=yes
    apt-get update --quiet --quiet </dev/null
}

package=$(newest)
if [ -z "$package" ]; then
    update || true
    package=$(newest)
fi
[ -n "$package" ] || fail "apt's lists have no package linux-image-amd64, Debian's kernel; as root: apt-get update"

new=$dir.new
rm -rf "$new"
mkdir -p "$new/unpacked"
cd "$new"
download() {
    apt-get --quiet --quiet --option APT::Sandbox::User=root download "$package" </dev/null
}
echo "linux: fetching $package" >&2
# Lists that are old may name what the server does not have any more.
if ! download; then
    update || fail "apt-get could not download $package; as root: apt-get update && apt-get download $package"
    package=$(newest)
    download || fail "apt-get could not download $package"
fi
dpkg-deb -x ./*.deb unpacked || fail "$package cannot be unpacked"
rm -f ./*.deb
set -- unpacked/boot/vmlinuz-*
[ -e "$1" ] || fail "$package has no boot/vmlinuz-*"
cp "$1" vmlinuz

count=0
# Copies a module of the kernel, after those that it depends on.
module() {
    [ -z "$(find . -maxdepth 1 -name "[0-9][0-9]-$1.ko")" ] || return 0
    packed=$(find unpacked -name "$1.ko*" | head -n 1)
    [ -n "$packed" ] || fail "$package has no module $1"
    case $packed in
        *.ko) cp "$packed" "$1.ko" ;;
        *.ko.xz) xz -dc "$packed" >"$1.ko" || fail "the command xz is missing, or $packed is broken" ;;
        *.ko.zst) zstd -dqc "$packed" >"$1.ko" || fail "the command zstd is missing, or $packed is broken" ;;
        *) fail "$package has module $1 packed in a way that is not known: $packed" ;;
    esac
    # The commas of the list, and the underscores that stand for hyphens in names of files.
    for other in $(tr '\0' '\n' <"$1.ko" | sed -n 's/^depends=//p' | tr ',' ' '); do
        if [ -z "$(find unpacked -name "$other.ko*")" ]; then
            other=$(echo "$other" | tr _ -)
        fi
        (module "$other") || exit 1
    done
    count=$(find . -maxdepth 1 -name '[0-9][0-9]-*.ko' | wc -l)
    strip --strip-debug "$1.ko"
    mv "$1.ko" "$(printf %02d "$count")-$1.ko"
}
module kvm-intel

rm -rf unpacked
echo "$package" >complete
cd - >/dev/null
rm -rf "$dir"
mv "$new" "$dir"
