package linux_test

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"vmscope/internal/guestlab"
	"vmscope/kernel"
	"vmscope/kernel/linux"
	"vmscope/mem"
)

// oddMounts are the commands that make mounts which are hard to name.
const oddMounts = `
mkdir -p /odd /m/a/b/c /m/over "/m/with space" "/m/tab	tab" '/m/back\slash' /m/ro /m/shared /m/slave /m/unb /m/ns /m/root/sub /m/ov/l /m/ov/u /m/ov/t /cg
touch /m/file /m/ns/net /m/root/sub/bin
mount -t tmpfs -o size=1m,nosuid,nodev,noexec tmp1 /m/over
mkdir /m/over/x && echo one > /m/over/x/f
mount -t tmpfs "source with space" "/m/with space"
mount -t tmpfs '' "/m/tab	tab" || true
mount -t tmpfs -o sync,dirsync,noatime,nodiratime none '/m/back\slash'
mount -t tmpfs -o ro,lazytime ro /m/ro
mount --bind /m/a /m/a/b && touch /m/a/b/via-bind
mount --bind /m/over/x /m/a/b/c
mount --bind /m/file /m/root/sub/bin
mount --bind -o remount,ro,bind,nosymfollow /m/root/sub/bin 2>/dev/null || mount -o remount,ro,bind /m/root/sub/bin
mount --bind /proc/self/ns/net /m/ns/net
mount -t tmpfs second /m/over
mkdir /m/over/y
mount -t tmpfs shared /m/shared && mount --make-shared /m/shared
mount --bind /m/shared /m/slave && mount --make-slave /m/slave
mkdir -p /m/shared/in && mount -t tmpfs inshared /m/shared/in
mount -t tmpfs unb /m/unb && mount --make-unbindable /m/unb
mount -t cgroup2 cg /cg && mkdir -p /cg/deep/er && mkdir /m/cgsub && mount --bind /cg/deep /m/cgsub
mkdir /m/gone && mount --bind /m/gone /m/unb && true
mount -t tmpfs pack /m/root && mkdir -p /m/root/proc /m/root/sub && mount -t proc proc /m/root/proc
mkdir -p /m/root/dropped && mount --bind /m/root/dropped /m/ns 
mkdir /cowner; touch /m/over/y/lower
true
`

// kernels are the stock kernels of the lab. Debian turns the vsyscall page off;
// some turn it on again.
var kernels = []struct {
	name string
	cfg  guestlab.Config
}{
	{"bullseye", guestlab.Config{Kernel: "bullseye-cloud", Append: "vsyscall=emulate"}},
	{"bookworm", guestlab.Config{Kernel: "bookworm-cloud", CPUs: 2}},
	{"bookworm-full", guestlab.Config{Kernel: "bookworm"}},
	{"trixie-LA57", guestlab.Config{Kernel: "trixie-cloud", CPUModel: "max"}},
	{"sid", guestlab.Config{Kernel: "sid-cloud", CPUs: 2, Append: "vsyscall=xonly"}},
}

// TestOddGuest compares open files, mounts and memory maps of all processes with
// what each stock kernel's /proc has, with processes that hold what is hard to
// name.
func TestOddGuest(t *testing.T) {
	if testing.Short() {
		t.Skip("boots guests")
	}
	for _, c := range kernels {
		if !wanted(t, c.cfg) {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			c.cfg.RAM = guestlab.SharedFile
			c.cfg.Modules = append(c.cfg.Modules, "overlay")
			g := guestlab.Boot(t, c.cfg)
			m := openRAM(t, g.RAMFile())
			k, err := linux.Find(t.Context(), m, linux.Hints{})
			if err != nil {
				t.Fatal(err)
			}
			prepare(t, g, k)
			t.Run("files", func(t *testing.T) { compareFiles(t, g, m, k) })
			t.Run("mounts", func(t *testing.T) { compareMounts(t, g, m, k) })
			t.Run("areas", func(t *testing.T) { compareAreas(t, g, m, k) })
			// The same where memory is not mapped but read and cached.
			c := mem.NewCache(unmapped{m}, 4096)
			t.Run("cached files", func(t *testing.T) { compareFiles(t, g, c, k) })
			t.Run("cached mounts", func(t *testing.T) { compareMounts(t, g, c, k) })
			t.Run("cached areas", func(t *testing.T) { compareAreas(t, g, c, k) })
		})
	}
}

// prepare starts processes in the guest of k that hold what is hard to name.
func prepare(t *testing.T, g *guestlab.Guest, k *linux.Kernel) {
	t.Helper()
	ctx := t.Context()
	run := func(script string) {
		t.Helper()
		if out, err := g.Run(ctx, script); err != nil {
			t.Logf("%s: %v %s", script, err, out)
		}
	}
	run(oddMounts)
	if err := g.Put(ctx, "/odd/odd", program(t, "odd", k), 0o755); err != nil {
		t.Fatal(err)
	}
	// An overlay, with a program of its lower layer mapped.
	run(`mkdir -p /m/ov/w && cp /odd/odd /m/ov/l/odd && cp /bin/busybox /m/ov/l/sleep && mkdir /m/lay && mount -t tmpfs lay /m/lay && mkdir /m/lay/u /m/lay/w &&
mount -t overlay -o lowerdir=/m/ov/l,upperdir=/m/lay/u,workdir=/m/lay/w ov /m/ov/t`)
	start := func(cmd string) {
		t.Helper()
		if _, err := g.Run(ctx, cmd+` > /odd/out 2>&1 & for i in $(seq 600); do grep -q READY /odd/out && exit 0; grep FAIL /odd/out && exit 1; sleep 0.1; done; cat /odd/out; exit 1`); err != nil {
			t.Fatalf("%s: %v", cmd, err)
		}
	}
	start("/odd/odd /odd/work /m/a/b /m/a/b/via-bind /m/a/b/c/f /m/ns/net /m/over/y /m/ov/t/odd /m/shared/in /m/slave/in /cg/deep")
	start("/m/ov/t/odd /m/ov/t/work /m/ov/t/odd")
	run("mkdir -p /m/root/sub/r && cp /odd/odd /m/root/odd")
	start("/odd/odd root /m/root")
	run("(cd /m/a/b/c; exec sleep 100000 < /m/over/y/lower 3< . 4> gone; ) >/dev/null 2>&1 & sleep 0.2; rm -f /m/over/x/gone; true")
	run("setsid /m/ov/t/sleep 100000 > /dev/null 2>&1 < /dev/null & true")
	// A mount that is gone from the tree while a file in it is open.
	run("mkdir /m/lazy && mount -t tmpfs lazy /m/lazy && mkdir /m/lazy/d && touch /m/lazy/d/f && (sleep 100000 < /m/lazy/d/f >/dev/null 2>&1 &) ; sleep 0.3; umount -l /m/lazy; rm -r /m/a/b/c/nothing; true")
	for _, s := range []guestlab.Spawn{
		{Comm: []byte("held"), Hold: &guestlab.Hold{
			Files: []string{"/h/one", "/h/" + strings.Repeat("x", 200)}, Deleted: []string{"/h/del"}, Dirs: []string{"/h"},
			Maps: []string{"/h/map"}, Anonymous: 50, Kinds: []string{"pipe", "eventfd", "epoll", "memfd", "timerfd", "signalfd", "inotify", "socketpair"}}},
		{Comm: []byte("apart"), NewNS: []string{"mnt", "pid", "net", "uts", "ipc"}, Hold: &guestlab.Hold{
			Files: []string{"/h/other/f"}, Mounts: []string{"/h/other"}, Maps: []string{"/h/other/map"}}},
	} {
		if _, err := g.Spawn(ctx, s); err != nil {
			t.Fatal(err)
		}
	}
}

// look runs f on a fresh View.
func look(t testing.TB, k *linux.Kernel, m mem.PhysReader, f func(*linux.View) error) {
	t.Helper()
	if c, ok := m.(*mem.Cache); ok {
		c.Forget()
	}
	if err := mem.Guard(func() error { return f(k.View(m)) }); err != nil {
		t.Error(err)
	}
}

// unmapped hides that a machine's memory is mapped.
type unmapped struct{ mem.PhysReader }

type fdKey struct{ pid, fd int }

// compareFiles compares descriptors that /proc had both before and after we
// looked, unchanged, and checks that we saw no others.
func compareFiles(t *testing.T, g *guestlab.Guest, m mem.PhysReader, k *linux.Kernel) {
	facts := func() map[fdKey]guestlab.FD {
		list, err := g.FDs(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		out := make(map[fdKey]guestlab.FD)
		for _, f := range list {
			out[fdKey{f.PID, f.FD}] = f
		}
		return out
	}
	before := facts()
	var got []kernel.File
	look(t, k, m, func(v *linux.View) (err error) {
		got, err = v.AllFiles()
		return err
	})
	after := facts()
	ours := make(map[fdKey]kernel.File)
	for _, f := range got {
		key := fdKey{f.PID, f.FD}
		ours[key] = f
		_, was := before[key]
		_, is := after[key]
		if !was && !is && int64(len(f.Path)) < 4096 {
			t.Errorf("we see %+v, /proc does not", f)
		}
	}
	overlay := ""
	mounts, err := g.Mounts(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		if m.FSType == "overlay" {
			overlay = m.Dev
		}
	}
	n := 0
	for key, f := range before {
		if now, ok := after[key]; !ok || fmt.Sprint(now) != fmt.Sprint(f) {
			continue // changes while we look
		}
		have, ok := ours[key]
		if !ok {
			t.Errorf("not seen: %d/%d %q", f.PID, f.FD, f.Link)
			continue
		}
		n++
		want := kernel.File{
			PID: f.PID, FD: f.FD, Path: kernel.Text(f.Link), Inode: f.Inode, Pos: f.Pos, Flags: uint32(f.Flags),
			Dev: devOf(f.Dev), Type: typeOf(f.Mode), Mode: modeOf(f.Flags), Comm: have.Comm, Addr: have.Addr,
		}
		if strings.HasPrefix(string(f.Link), "anon_inode:") {
			want.Type = "anon"
		}
		if strings.HasPrefix(string(f.Link), "/m/ov/t/") && typeOf(f.Mode) != "DIR" {
			want.Dev = overlay // stat(2) makes one up for each layer
		}
		if want != have {
			t.Errorf("%d/%d:\n have %+v\n want %+v", f.PID, f.FD, have, want)
		}
		delete(ours, key)
	}
	deep := 0
	for _, f := range got {
		if len(f.Path) >= 4096 {
			deep++
			if !strings.HasSuffix(string(f.Path), strings.Repeat("d", 200)+"/leaf") {
				t.Errorf("deep path ends with %q", f.Path[len(f.Path)-10:])
			}
		}
	}
	if n < 100 || deep == 0 {
		t.Errorf("compared only %d descriptors, %d of them deep", n, deep)
	}
	t.Logf("%d descriptors equal, %d deeper than PATH_MAX, %d changed meanwhile", n, deep, len(before)-n)
	kinds := map[string]int{}
	for _, f := range got {
		kinds[f.Type]++
	}
	t.Log(kinds)
}

// devOf parts a device number as user space has it.
func devOf(dev uint64) string {
	return fmt.Sprintf("%d:%d", dev>>8&0xfff|dev>>32&^0xfff, dev&0xff|dev>>12&^0xff)
}

func typeOf(mode uint32) string {
	return map[uint32]string{0: "anon", 1: "FIFO", 2: "CHR", 4: "DIR", 6: "BLK", 8: "REG", 10: "LINK", 12: "SOCK"}[mode>>12]
}

func modeOf(flags uint64) string {
	if flags&0x200000 != 0 { // O_PATH
		return ""
	}
	return [...]string{"r", "w", "u", "?"}[flags&3]
}

// sorted lists the keys of a map in order.
func sorted[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
