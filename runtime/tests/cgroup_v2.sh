#!/bin/sh
# Runs the container tests on a pure cgroup v2 system: a virtual machine that lives for a minute or a few.
#
#   cargo test -p flotilla-runtime --no-run && cargo build -p flotilla-runtime --examples
#   runtime/tests/cgroup_v2.sh KERNEL [ENGINE]
#
# KERNEL is a bzImage with tmpfs, devpts, mqueue and cgroups built in, such as Debian's linux-image-cloud-amd64 has under
# /boot. ENGINE stands in for runc (try /usr/bin/crun). Needs qemu-system-x86_64, cpio, busybox-static and runc; no KVM.
set -eu

kernel=${1:?usage: cgroup_v2.sh KERNEL [ENGINE]}
engine=${2:-/usr/sbin/runc}
target=${CARGO_TARGET_DIR:-target}/debug
root=$(mktemp -d)
trap 'rm -rf "$root" "$root.gz" "$root.log"' EXIT

for dir in bin sbin usr/bin usr/sbin lib lib64 etc t/deps t/examples; do mkdir -p "$root/$dir"; done
cp /usr/bin/busybox "$root/usr/bin/"
cp /usr/bin/busybox "$root/bin/"
cp "$engine" "$root/usr/sbin/runc"
cp "$target/examples/shim" "$root/t/examples/"
for test in pods pods_exec shim; do
    newest=$(find "$target/deps" -name "$test-*" -type f -perm -100 -printf '%T@ %p\n' | sort -n | tail -1 | cut -d' ' -f2)
    cp "$newest" "$root/t/deps/$test"
done
strip "$root"/t/deps/* "$root"/t/examples/*
for program in "$root"/t/deps/* "$root"/t/examples/* "$root/usr/sbin/runc"; do ldd "$program" 2>/dev/null || true; done |
    grep -o '/[^ ]*' | sort -u | while read -r library; do
        mkdir -p "$root$(dirname "$library")"
        cp -L "$library" "$root$library"
    done

# The first root cannot be pivoted away from, so everything moves to a tmpfs.
cat >"$root/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox mkdir /new
/bin/busybox mount -t tmpfs -o size=1500m none /new
for dir in bin sbin usr lib lib64 etc t second; do /bin/busybox cp -a /$dir /new/; done
/bin/busybox mkdir /new/proc /new/sys /new/dev /new/tmp /new/run
exec /bin/busybox switch_root /new /second
INIT
cat >"$root/second" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/usr/sbin:/usr/bin:/sbin:/bin RUST_BACKTRACE=0
mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts none /dev/pts; mount -t tmpfs none /dev/shm; mount -t tmpfs none /tmp; mount -t tmpfs none /run
mount -t cgroup2 none /sys/fs/cgroup
ip link set lo up
cd /t
failed=0
for test in pods pods_exec shim; do deps/$test --test-threads=1 2>&1 || failed=1; done
[ $failed = 0 ] && echo CGROUP-V2-PASSED
poweroff -f
INIT
chmod +x "$root/init" "$root/second"
(cd "$root" && find . | cpio -o -H newc 2>/dev/null) | gzip -1 >"$root.gz"

timeout 1200 qemu-system-x86_64 -cpu max -m 2048 -kernel "$kernel" -initrd "$root.gz" \
    -append "console=ttyS0 quiet panic=1" -nographic -no-reboot | tee "$root.log"
grep -q CGROUP-V2-PASSED "$root.log"
