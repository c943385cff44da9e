package guestlab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestGuest goes through all that the lab offers.
func TestGuest(t *testing.T) {
	for _, kernel := range TestKernels(t) {
		t.Run(kernel, func(t *testing.T) { testGuest(t, Boot(t, Config{Kernel: kernel})) })
	}
}

func testGuest(t *testing.T, g *Guest) {
	t.Logf("%s up after %v", g.Kernel().Release, g.BootTime())
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	for _, test := range []struct {
		name string
		f    func(*testing.T, context.Context, *Guest)
	}{
		{"Run", testRun}, {"RunBinary", testRunBinary}, {"RunParallel", testRunParallel}, {"RunCancel", testRunCancel}, {"Put", testPut},
		{"System", testSystem}, {"Modules", testModules}, {"Sleeper", testSleeper}, {"Container", testContainer}, {"Hold", testHold},
		{"Mounts", testMounts}, {"Dmesg", testDmesg}, {"Kallsyms", testKallsyms}, {"Storm", testStorm},
	} {
		t.Run(test.name, func(t *testing.T) { test.f(t, ctx, g) })
	}
}

func testRun(t *testing.T, ctx context.Context, g *Guest) {
	if out, err := g.Run(ctx, `printf 'a\n\nb'`); out != "a\n\nb" || err != nil {
		t.Errorf("got %q, %v", out, err)
	}
	out, err := g.Run(ctx, "echo partly; echo why >&2; exit 3")
	var exit *ExitError
	if out != "partly\n" || !errors.As(err, &exit) || exit.Status != 3 || string(exit.Stderr) != "why\n" {
		t.Errorf("got %q, %v", out, err)
	}
	if _, err := g.Run(ctx, "kill -9 $$"); !errors.As(err, &exit) || exit.Status != 128+9 {
		t.Errorf("got %v", err)
	}
	if out, err := g.Run(ctx, "sleep 1000 & echo $!"); err != nil { // returns though something goes on
		t.Errorf("got %q, %v", out, err)
	} else if _, err := g.Run(ctx, "kill "+out); err != nil {
		t.Errorf("the background process is gone: %v", err)
	}
	if out, err := g.Run(ctx, ""); out != "" || err == nil && out != "" {
		t.Errorf("an empty script: %q, %v", out, err)
	}
	if out, err := g.Run(ctx, "echo #"+strings.Repeat("x", 300_000)+"\necho end"); out != "\nend\n" || err != nil {
		t.Errorf("a long script: %q, %v", out, err)
	}
}

func testRunBinary(t *testing.T, ctx context.Context, g *Guest) {
	began := time.Now()
	out, err := g.Run(ctx, "head -c 20000000 /dev/urandom >/tmp/r; cat /tmp/r")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("20 MB in %v", time.Since(began))
	sum, err := g.Run(ctx, "sha256sum </tmp/r; rm /tmp/r")
	if want := fmt.Sprintf("%x  -\n", sha256.Sum256([]byte(out))); err != nil || sum != want || len(out) != 20_000_000 {
		t.Errorf("%d bytes with sum %q, want %q, %v", len(out), sum, want, err)
	}
}

func testRunParallel(t *testing.T, ctx context.Context, g *Guest) {
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			want := fmt.Sprintf("%d\n", i)
			if out, err := g.Run(ctx, fmt.Sprintf("sleep 0.%d; echo %d", i%3, i)); out != want || err != nil {
				t.Errorf("got %q, %v, want %q", out, err, want)
			}
		})
	}
	wg.Wait()
}

func testRunCancel(t *testing.T, ctx context.Context, g *Guest) {
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if _, err := g.Run(short, "sleep 4321"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	for range 50 {
		if out, _ := g.Run(ctx, "ps | grep '[s]leep 4321'"); out == "" {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Error("the script runs on")
}

func testPut(t *testing.T, ctx context.Context, g *Guest) {
	data := bytes.Repeat([]byte{0, 1, 0xff, '\n'}, 50_000)
	if err := g.Put(ctx, "/srv/deep/file", data, 0o640); err != nil {
		t.Fatal(err)
	}
	out, err := g.Run(ctx, "stat -c '%a %s' /srv/deep/file; sha256sum </srv/deep/file")
	if want := fmt.Sprintf("640 200000\n%x  -\n", sha256.Sum256(data)); out != want || err != nil {
		t.Errorf("got %q, %v, want %q", out, err, want)
	}
}

func testSystem(t *testing.T, ctx context.Context, g *Guest) {
	s, err := g.System(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if s.Release != g.Kernel().Release || s.Nodename != g.Name() || !strings.Contains(s.Banner, s.Release) || strings.Contains(s.Cmdline, "nokaslr") {
		t.Errorf("%+v", s)
	}
	if s.Boottime <= 0 || s.Realtime < s.Boottime || s.Jiffies == 0 {
		t.Errorf("clocks: %+v", s)
	}
	if info, err := os.Stat(g.RAMFile()); err != nil || info.Size() != 512<<20 {
		t.Errorf("RAM file: %v, %v", info, err)
	}
}

func testModules(t *testing.T, ctx context.Context, g *Guest) {
	mods, err := g.Modules(ctx)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(mods, func(m Module) bool { return m.Name == "llc" })
	if i < 0 {
		t.Fatalf("no llc in %+v", mods)
	}
	llc := mods[i]
	slices.Sort(llc.UsedBy)
	if llc.Refs != 2 || !slices.Equal(llc.UsedBy, []string{"bridge", "stp"}) || llc.State != "Live" || llc.Size == 0 || llc.Sections[".text"] != llc.Addr {
		t.Errorf("%+v", llc)
	}
}

// process finds what the oracle says of a process among all.
func findProcess(t *testing.T, ctx context.Context, g *Guest, pid int) Process {
	t.Helper()
	all, err := g.Processes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(p Process) bool { return p.PID == pid })
	if i < 0 {
		t.Fatalf("no process %d", pid)
	}
	return all[i]
}

func testSleeper(t *testing.T, ctx context.Context, g *Guest) {
	for _, name := range []string{"a b", "x) S 1 (y", "new\nline", "\xff\xfe\x80", "fifteen-bytes-and-more"} {
		args := [][]byte{[]byte("arg 0\n"), {}, {0xff, 0x01}}
		env := [][]byte{[]byte("A=b c"), []byte("odd"), {0xc0, '=', '\n'}}
		pid, err := g.Spawn(ctx, Spawn{Comm: []byte(name), Args: args, Env: env, UID: 1000, GID: 65534})
		if err != nil {
			t.Errorf("%q: %v", name, err)
			continue
		}
		p := findProcess(t, ctx, g, pid)
		if want := name[:min(len(name), 15)]; string(p.Comm) != want {
			t.Errorf("comm %q, want %q", p.Comm, want)
		}
		if want := append(bytes.Join(args, []byte{0}), 0); !bytes.Equal(p.Cmdline, want) {
			t.Errorf("command line %q, want %q", p.Cmdline, want)
		}
		if p.UID != 1000 || p.GID != 65534 || p.State != "S" || p.Threads != 1 || p.Kthread || p.StartTicks == 0 || !strings.HasSuffix(string(p.Exe), "/"+name) {
			t.Errorf("%+v", p)
		}
		if got, err := g.Environ(ctx, pid); err != nil || !slices.EqualFunc(got, env, bytes.Equal) {
			t.Errorf("environment %q, %v", got, err)
		}
	}
	if p := findProcess(t, ctx, g, 2); !p.Kthread || string(p.Comm) != "kthreadd" || p.Exe != nil || len(p.Cmdline) != 0 {
		t.Errorf("%+v", p)
	}
}

func testContainer(t *testing.T, ctx context.Context, g *Guest) {
	group := "system.slice/docker-" + strings.Repeat("0123456789abcdef", 4) + ".scope"
	pid, err := g.Spawn(ctx, Spawn{Comm: []byte("web"), Cgroup: group, NewNS: []string{"mnt", "pid", "net", "uts", "ipc"},
		Hostname: "inner", Hold: &Hold{Mounts: []string{"/mnt/inner"}, Listen: []string{"tcp4:0.0.0.0:8080"}}})
	if err != nil {
		t.Fatal(err)
	}
	p, self := findProcess(t, ctx, g, pid), findProcess(t, ctx, g, 1)
	if !slices.Equal(p.Cgroup, []string{"0::/" + group}) || !slices.Equal(p.NSPID, []int{pid, 1}) {
		t.Errorf("%+v", p)
	}
	for _, ns := range []string{"mnt", "pid", "net", "uts", "ipc", "user"} {
		if same := p.NS[ns] == self.NS[ns]; same != (ns == "user") {
			t.Errorf("%s: %d and %d", ns, p.NS[ns], self.NS[ns])
		}
	}
	if out, err := g.Run(ctx, fmt.Sprintf("nsenter -t %d -u hostname", pid)); out != "inner\n" {
		t.Errorf("host name %q, %v", out, err)
	}
	isInner := func(m Mount) bool { return string(m.Target) == "/mnt/inner" && m.FSType == "tmpfs" }
	if inner, err := g.Mounts(ctx, pid); err != nil || !slices.ContainsFunc(inner, isInner) {
		t.Errorf("mounts %+v, %v", inner, err)
	}
	if outer, err := g.Mounts(ctx, 0); err != nil || slices.ContainsFunc(outer, isInner) {
		t.Errorf("mounts %+v, %v", outer, err)
	}
	sockets, err := g.Sockets(ctx)
	if err != nil || !slices.ContainsFunc(sockets, func(s Socket) bool {
		return s.NetNS == p.NS["net"] && s.Proto == "tcp" && s.Local == "0.0.0.0:8080" && s.State == 10 && s.Owners[0].PID == pid
	}) {
		t.Errorf("sockets %+v, %v", sockets, err)
	}
}

func testHold(t *testing.T, ctx context.Context, g *Guest) {
	h := &Hold{
		Threads: [][]byte{[]byte("worker one"), []byte("w)\xff")},
		Files:   []string{"/srv/held file"}, Deleted: []string{"/tmp/gone"}, Dirs: []string{"/etc"}, Maps: []string{"/srv/map"}, Anonymous: 2,
		Kinds:   []string{"pipe", "eventfd", "epoll", "memfd", "timerfd", "signalfd", "inotify", "socketpair"},
		Listen:  []string{"tcp4:127.0.0.1:7000", "tcp6:[::1]:7001", "unix:/run/held.sock", "unix:@held abstract"},
		Connect: []string{"tcp4:127.0.0.1:7000", "tcp6:[::1]:7001", "unix:/run/held.sock", "unix:@held abstract"},
		Bind:    []string{"udp4:127.0.0.1:7002", "udp6:[::]:7003", "unixgram:/run/gram"},
	}
	pid, err := g.Spawn(ctx, Spawn{Comm: []byte("holder"), Hold: h})
	if err != nil {
		t.Fatal(err)
	}
	threads, err := g.Threads(ctx, pid)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range h.Threads {
		if !slices.ContainsFunc(threads, func(th Thread) bool { return bytes.Equal(th.Comm, name) && th.TGID == pid && th.TID != pid }) {
			t.Errorf("no thread %q in %+v", name, threads)
		}
	}
	fds, err := g.FDs(ctx, pid)
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for _, fd := range fds {
		name, _, _ := strings.Cut(string(fd.Link), ":[")
		count[name]++
		if string(fd.Link) == "/srv/held file" && (fd.Mode&syscall.S_IFMT != syscall.S_IFREG || fd.Flags&3 != syscall.O_RDWR || fd.Inode == 0) {
			t.Errorf("%+v", fd)
		}
	}
	for name, want := range map[string]int{"/dev/null": 3, "/srv/held file": 1, "/tmp/gone (deleted)": 1, "/etc": 1, "/memfd:held (deleted)": 1, "pipe": 2, "socket": 2 + 3*4 + 3,
		"anon_inode:[eventfd]": 1, "anon_inode:[eventpoll]": 1, "anon_inode:[timerfd]": 1, "anon_inode:[signalfd]": 1, "anon_inode:inotify": 1} {
		short, _, _ := strings.Cut(name, ":[") // as counted
		if short == "anon_inode" {
			continue
		}
		if count[short] != want {
			t.Errorf("%d of %s, want %d; all: %v", count[short], name, want, count)
		}
	}
	if count["anon_inode"] != 4 {
		t.Errorf("%v", count)
	}
	maps, err := g.Mappings(ctx, pid)
	if err != nil {
		t.Fatal(err)
	}
	var perms []string
	for _, m := range maps {
		if string(m.Path) == "/srv/map" {
			perms = append(perms, fmt.Sprintf("%s %x %d", m.Perms, m.Offset, m.End-m.Start))
		}
	}
	slices.Sort(perms)
	if !slices.Equal(perms, []string{"r--p 1000 4096", "r--s 0 4096"}) {
		t.Errorf("mappings %q", perms)
	}
	testHeldSockets(t, ctx, g, pid)
}

func testHeldSockets(t *testing.T, ctx context.Context, g *Guest, pid int) {
	sockets, err := g.Sockets(ctx)
	if err != nil {
		t.Fatal(err)
	}
	owned := map[string]int{}
	for _, s := range sockets {
		if slices.ContainsFunc(s.Owners, func(o Owner) bool { return o.PID == pid }) {
			owned[fmt.Sprintf("%s %s%s %d", s.Proto, s.Local, s.Path, s.State)]++
		}
	}
	for what, want := range map[string]int{"tcp 127.0.0.1:7000 10": 1, "tcp 127.0.0.1:7000 1": 1, "tcp6 [::1]:7001 10": 1, "tcp6 [::1]:7001 1": 1,
		"udp 127.0.0.1:7002 7": 1, "udp6 [::]:7003 7": 1, "unix /run/gram 1": 1, "unix /run/held.sock 1": 1, "unix /run/held.sock 3": 1, "unix @held abstract 1": 1, "unix @held abstract 3": 1} {
		if owned[what] != want {
			t.Errorf("%d of %s, want %d; all: %v", owned[what], what, want, owned)
		}
	}
}

func testMounts(t *testing.T, ctx context.Context, g *Guest) {
	if _, err := g.Run(ctx, `mkdir -p '/mnt/a b\c'; mount -t tmpfs 'odd source' '/mnt/a b\c'`); err != nil {
		t.Fatal(err)
	}
	mounts, err := g.Mounts(ctx, 0)
	if err != nil || !slices.ContainsFunc(mounts, func(m Mount) bool { return string(m.Target) == `/mnt/a b\c` && string(m.Source) == "odd source" }) {
		t.Errorf("%+v, %v", mounts, err)
	}
	if mounts[0].FSType != "rootfs" || string(mounts[0].Target) != "/" {
		t.Errorf("%+v", mounts[0])
	}
}

func testDmesg(t *testing.T, ctx context.Context, g *Guest) {
	// Without the newline the kernel keeps the record open for a continuation, and does not tell it yet.
	if _, err := g.Run(ctx, `printf '<12>odd \001 \\ text\n' >/dev/kmsg`); err != nil {
		t.Fatal(err)
	}
	log, err := g.Dmesg(ctx)
	if err != nil || len(log) == 0 {
		t.Fatal(err)
	}
	if first := log[0]; first.Seq != 0 || !strings.HasPrefix(string(first.Text), "Linux version "+g.Kernel().Release) {
		t.Errorf("%+v", first)
	}
	if !slices.ContainsFunc(log, func(r LogRecord) bool { return string(r.Text) == "odd \x01 \\ text" && r.Level == 4 && r.Facility == 1 }) {
		t.Errorf("%+v", log[len(log)-1])
	}
}

func testKallsyms(t *testing.T, ctx context.Context, g *Guest) {
	syms, err := g.Kallsyms(ctx)
	if err != nil || len(syms) < 50_000 {
		t.Fatalf("%d symbols, %v", len(syms), err)
	}
	if !slices.ContainsFunc(syms, func(s Symbol) bool { return s.Name == "_stext" && s.Addr > 0xffffffff80000000 && s.Type == 'T' }) {
		t.Error("no _stext")
	}
	if !slices.ContainsFunc(syms, func(s Symbol) bool { return s.Module == "bridge" }) {
		t.Error("no symbol of a module")
	}
}

func testStorm(t *testing.T, ctx context.Context, g *Guest) {
	before, err := g.Run(ctx, "awk '$1==\"processes\"{print $2}' /proc/stat")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Run(ctx, "rat storm 2 1"); err != nil {
		t.Error(err)
	}
	after, _ := g.Run(ctx, "awk '$1==\"processes\"{print $2}' /proc/stat")
	if out, err := g.Run(ctx, "rat modstorm 1 dummy macvlan"); err != nil || out == "0\n" {
		t.Errorf("%q, %v", out, err)
	}
	var a, b int
	fmt.Sscan(before, &a)
	fmt.Sscan(after, &b)
	if b-a < 30 {
		t.Errorf("only %d forks", b-a)
	}
}
