package detect

import (
	"context"
	"debug/elf"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"vmscope"
	"vmscope/internal/guestlab"
)

// looksVariable is the environment variable that says how often TestClean looks
// at each guest, at least. Without it that is for as long as the guest takes to
// do each thing once. See make test-long.
const looksVariable = "VMSCOPE_LOOKS"

// TestClean looks again and again at guests that nobody tampers with, while they
// do all that changes a kernel by its own means, and demands that nothing is
// found but inventory, and that every check can tell.
func TestClean(t *testing.T) {
	want, _ := strconv.Atoi(os.Getenv(looksVariable))
	names := guestlab.TestKernels(t)
	if os.Getenv(guestlab.KernelsVariable) != "" { // guests of others are asked for
		// Those that are built, not Debian's, cannot trace.
		names = append(names, slices.DeleteFunc(guestlab.OtherKernels(), func(name string) bool {
			return !strings.Contains(name, "arm64") || strings.HasPrefix(name, "arm64-")
		})...)
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			// One CPU: of two, one runs now and then what the other has rewritten,
			// and the kernel dies of it; the emulator's fault.
			cfg := guestlab.Config{Kernel: name, MemoryMiB: 384, Modules: []string{"loop", "overlay", "sch_ingress", "cls_bpf"}}
			pc := slices.Contains(guestlab.Kernels(), name)
			if pc {
				cfg.Modules = append(cfg.Modules, "kvm_amd")
			}
			lab := guestlab.Boot(t, cfg)
			g, err := vmscope.Open(t.Context(), lab.Name())
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			work := []func(context.Context, *guestlab.Guest) error{code, containers}
			done := make(chan error, len(work))
			rounds := make(chan struct{}, len(work)) // one for each worker that shall go on
			for _, w := range work {
				go func() {
					for range rounds {
						done <- w(ctx, lab)
					}
				}()
				rounds <- struct{}{}
			}
			defer close(rounds)
			looks, alarms, unsure, times := 0, 0, 0, 0
			ref := NewReference()
			checks := Against(ref)
			if pc {
				ref.Vendor = vendorOf(t, lab)
			} else {
				checks = slices.DeleteFunc(checks, func(d Detector) bool { return !slices.Contains(anywhere, d.Name()) })
			}
			defer func() {
				t.Logf("%s: %d looks while %d rounds went on: %d alarms, %d could not tell", lab.Kernel().Release, looks, times, alarms, unsure)
			}()
			for busy := len(work); busy > 0; {
				looks++
				if err := g.View(t.Context(), func(v *vmscope.View) error {
					r := Sweep(t.Context(), v, checks)
					for _, f := range r.Tampered() {
						if alarms++; alarms > 20 {
							continue
						}
						t.Errorf("look %d: %s: %s %+v", looks, f.ID, f.Summary, f.Evidence)
					}
					if err := r.Err(); err != nil {
						unsure++
						t.Errorf("look %d: %v", looks, err)
					}
					return nil
				}); err != nil {
					t.Fatal(err)
				}
				if alarms+unsure > 20 {
					return
				}
				select {
				case err := <-done:
					times++
					if err != nil {
						t.Error(err)
						return
					}
					if looks < want {
						rounds <- struct{}{}
					} else {
						busy--
					}
				case <-time.After(20 * time.Millisecond): // the guest needs the processor as well
				}
			}
		})
	}
}

// rewriting is what a guest does to its own code: functions by the thousand are
// traced and no more, probes are set, tracepoints, static keys and static calls
// are turned on and off, modules come and go.
const rewriting = `
mkdir -p /sys/kernel/tracing; mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
cd /sys/kernel/tracing || exit 1
echo nop > current_tracer
echo 'tcp_* vfs_* ext4_* do_* sched_*' > set_ftrace_filter
for tracer in function function_graph; do
	if grep -q $tracer available_tracers; then
		echo $tracer > current_tracer
		sleep 0.2
	fi
done
echo nop > current_tracer
echo > set_ftrace_filter
echo function > current_tracer # all of them
sleep 0.2
echo nop > current_tracer
echo 'p:one do_sys_openat2' > kprobe_events
echo 'p:two vfs_read+8' >> kprobe_events 2>/dev/null || true
echo 'r:three vfs_write' >> kprobe_events
n=0
for f in $(grep -E '^(ext4|tcp|udp)_[a-z_]*$' available_filter_functions | head -50); do
	n=$((n + 1))
	echo "p:many$n $f" >> kprobe_events 2>/dev/null || true
done
echo 'p:user /bin/busybox:%#x' > uprobe_events
echo 1 > events/kprobes/enable
echo 1 > events/uprobes/enable
ls / > /dev/null
sleep 0.3 # probes are optimized after a while
echo 0 > events/kprobes/enable
echo 0 > events/uprobes/enable
echo > kprobe_events
echo > uprobe_events
for group in sched syscalls irq timer ext4 kmem; do
	[ -e events/$group/enable ] && echo 1 > events/$group/enable
done
for key in kernel/sched_schedstats kernel/bpf_stats_enabled kernel/task_delayacct; do
	[ -e /proc/sys/$key ] && echo 1 > /proc/sys/$key
done
sleep 0.2
for key in kernel/sched_schedstats kernel/bpf_stats_enabled kernel/task_delayacct; do
	[ -e /proc/sys/$key ] && echo 0 > /proc/sys/$key
done
echo 0 > events/enable
rmmod loop; modprobe loop
rat modstorm 0.5 dummy ifb macvlan
# The init code of those has places that are rewritten; the next ones come to lie where it was.
for m in dummy ifb macvlan veth tun; do modprobe $m; done
sleep 0.5
for m in tun veth macvlan ifb dummy; do rmmod $m; done
`

// refused are the ways to attach programs that a kernel has not got.
var refused = map[string][]string{
	"bullseye-cloud":     {"perf_link", "kprobe_multi", "tcx"},
	"bookworm-cloud":     {"kprobe_multi", "tcx"},
	"bookworm":           {"kprobe_multi", "tcx"},
	"trixie-cloud-arm64": {"kprobe_multi"},
}

// code has the guest rewrite its code, and load programs of eBPF.
func code(ctx context.Context, lab *guestlab.Guest) error {
	entry, err := entryOf(lab.Kernel().Busybox())
	if err != nil {
		return err
	}
	if _, err := lab.Run(ctx, fmt.Sprintf(rewriting, entry)); err != nil {
		return fmt.Errorf("rewriting: %w", err)
	}
	out, err := lab.Run(ctx, "rat bpf 1")
	if err != nil {
		return fmt.Errorf("programs: %w: %s", err, out)
	}
	for line := range strings.Lines(out) {
		if way, why, ok := strings.Cut(strings.TrimPrefix(line, "refused "), ":"); strings.HasPrefix(line, "refused") && ok && !slices.Contains(refused[lab.Kernel().Name], way) {
			return fmt.Errorf("the kernel did not attach %s:%s", way, why)
		}
	}
	return nil
}

// entryOf is where in a program's file the code is with which it begins.
func entryOf(path string) (uint64, error) {
	f, err := elf.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_LOAD && f.Entry-p.Vaddr < p.Filesz {
			return f.Entry - p.Vaddr + p.Off, nil
		}
	}
	return 0, fmt.Errorf("%s begins nowhere", path)
}

// containing is what runs of containers do.
const containing = `
mkdir -p /tmp/box && mount -t tmpfs tmpfs /tmp/box && cd /tmp/box && mkdir lower upper work root lower/bin
cp /bin/busybox lower/bin/
for i in 1 2 3; do
	unshare -m -u -i -n -p -f /bin/sh -c '
		mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work root &&
		mkdir -p root/proc root/tmp && mount -t proc proc root/proc &&
		chroot root /bin/busybox sh -c "hostname box; ls -R /proc/1 >/tmp/out 2>&1; sleep 0.2"'
done
cd /; umount /tmp/box
for i in 1 2 3; do
	mkdir -p /sys/fs/cgroup/box$i && sh -c "echo \$\$ > /sys/fs/cgroup/box$i/cgroup.procs; exec sleep 0.1"
	rmdir /sys/fs/cgroup/box$i
done
modprobe veth
ip link add left type veth peer name right && ip link set left up && ip link del left
rat storm 3 1
echo /bin/false > /proc/sys/kernel/modprobe
ls -lR /proc/sys > /dev/null
`

// containers has containers, users and processes come and go.
func containers(ctx context.Context, lab *guestlab.Guest) error {
	var kill string
	for _, s := range []guestlab.Spawn{
		{Comm: []byte("container"), NewNS: []string{"mnt", "pid", "net", "uts", "ipc", "cgroup", "user"}},
		{Comm: []byte("network"), NewNS: []string{"net"}},
		{Comm: []byte("user"), UID: 1000, GID: 1000},
		{Comm: []byte("program"), Hold: &guestlab.Hold{Kinds: []string{"bpf", "memfd"}, Threads: [][]byte{[]byte("one"), []byte("two")}}},
	} {
		pid, err := lab.Spawn(ctx, s)
		if err != nil {
			return fmt.Errorf("%s: %w", s.Comm, err)
		}
		kill += fmt.Sprintf("kill -9 %d\n", pid)
	}
	if _, err := lab.Run(ctx, containing+kill); err != nil {
		return fmt.Errorf("containers: %w", err)
	}
	return nil
}
