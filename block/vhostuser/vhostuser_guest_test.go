package vhostuser

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmscope/block"
	"vmscope/internal/guestlab"
	"vmscope/internal/qmp"
	"vmscope/mem"
)

func run1(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// newFS makes an image with an ext4 file system.
func newFS(t testing.TB, size string) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "disk")
	run1(t, "truncate", "-s", size, image)
	run1(t, "mkfs.ext4", "-q", "-E", "nodiscard", image)
	return image
}

// process is a back end in a process of its own.
type process struct {
	t   testing.TB
	arg string
	cmd *exec.Cmd
}

func startBackEnd(t testing.TB, args ...string) *process {
	t.Helper()
	p := &process{t: t, arg: strings.Join(args, " ")}
	p.start()
	t.Cleanup(func() { p.kill() })
	return p
}

func (p *process) start() {
	p.t.Helper()
	p.cmd = exec.Command(os.Args[0])
	p.cmd.Env = append(os.Environ(), backEnd+"="+p.arg)
	p.cmd.Stderr = os.Stderr
	p.cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		p.t.Fatalf("back end said %q, %v", line, err)
	}
}

func (p *process) kill() {
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

// socketPath is short enough for a socket.
func socketPath(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vu")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

// checkFS checks the file system and compares the files' sums with what the guest said: lines of sha256sum, by paths
// relative to the root.
func checkFS(t testing.TB, image, sums string) {
	t.Helper()
	run1(t, "e2fsck", "-fn", image)
	dir := t.TempDir()
	run1(t, "debugfs", "-R", "rdump / "+dir, image)
	n := 0
	for line := range strings.Lines(sums) {
		sum, name, ok := strings.Cut(strings.TrimSpace(line), "  ")
		if !ok {
			t.Fatalf("line %q", line)
		}
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
			continue
		}
		if got := fmt.Sprintf("%x", sha256.Sum256(data)); got != sum {
			t.Errorf("%s: %d bytes with another sum", name, len(data))
		}
		n++
	}
	files := 0
	filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files++
		}
		return nil
	})
	if n != files || n == 0 {
		t.Errorf("%d files on the disk, the guest has %d", files, n)
	}
}

// work makes, overwrites, moves and removes files, some with fsync.
const work = `cd /mnt
x=$1
rnd() { x=$(( (x * 1103515245 + 12345) & 0x7fffffff )); r=$(( (x >> 8) % $1 )); }
i=0
while [ $i -lt $2 ]; do
	i=$((i+1))
	rnd 8; d=d$r; mkdir -p $d
	rnd 30; f=$d/f$r
	rnd 10
	case $r in
	0|1) rm -f $f ;;
	2) rnd 8; mv $f d$r/m$i 2>/dev/null ;;
	3|4) rnd 200; dd if=/dev/urandom of=$f bs=4096 count=$r 2>/dev/null ;;
	*) rnd 40; dd if=/dev/urandom of=$f bs=1000 count=$r conv=fsync 2>/dev/null ;;
	esac
done
:`

const sumAll = `cd /mnt && find . -type f | sort | xargs sha256sum | sed 's|  \./|  |'`

func mountScript(dev string) string { return "mkdir -p /mnt; mount -t ext4 " + dev + " /mnt" }

// noErrors looks for I/O errors in the guest's log.
func noErrors(t testing.TB, g *guestlab.Guest) {
	t.Helper()
	log, err := g.Dmesg(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range log {
		if bytes.Contains(r.Text, []byte("I/O error")) || bytes.Contains(r.Text, []byte("EXT4-fs error")) || bytes.Contains(r.Text, []byte("virtio_blk")) && bytes.Contains(r.Text, []byte("timeout")) {
			t.Errorf("the guest says: %s", r.Text)
		}
	}
}

// A guest works on a disk of ours and finds it as it left it.
func TestGuest(t *testing.T) {
	guestlab.Need(t, "mkfs.ext4", "e2fsck", "debugfs")
	if testing.Short() {
		guestlab.Skip(t, "boots a guest; not under -short")
	}
	const queues = 2
	image, socket := newFS(t, "200M"), socketPath(t)
	startBackEnd(t, "listen", socket, image, "copy")
	g := guestlab.Boot(t, guestlab.Config{
		Kernel: "bookworm-cloud", RAM: guestlab.Memfd, CPUs: queues,
		QEMUArgs: []string{"-chardev", "socket,id=vu,path=" + socket + ",reconnect=1",
			"-device", fmt.Sprintf("vhost-user-blk-pci,chardev=vu,num-queues=%d", queues)},
	})
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	out, err := g.Run(ctx, "ls /sys/block/vda/mq | wc -l; cat /sys/block/vda/queue/discard_max_bytes /sys/block/vda/queue/write_zeroes_max_bytes /sys/block/vda/queue/write_cache; "+mountScript("/dev/vda"))
	if want := fmt.Sprintf("%d\n1073741824\n1073741824\nwrite back\n", queues); err != nil || out != want {
		t.Fatalf("%q, %v, want %q", out, err, want)
	}
	sums, err := g.Run(ctx, "set -- "+fmt.Sprint(rand.IntN(1<<30))+" 80\n"+work+"\nfstrim /mnt\nsync; echo 3 >/proc/sys/vm/drop_caches\n"+sumAll+"\ncd /; umount /mnt")
	if err != nil {
		t.Fatal(err)
	}
	noErrors(t, g)
	checkFS(t, image, sums)
}

// The back end is killed again and again while the guest writes: the guest sees a pause and no more.
func TestGuestKilledBackEnd(t *testing.T) {
	guestlab.Need(t, "mkfs.ext4", "e2fsck", "debugfs")
	for _, mode := range []string{"listen", "connect"} {
		t.Run(mode, func(t *testing.T) {
			if testing.Short() {
				guestlab.Skip(t, "boots a guest; not under -short")
			}
			image, socket := newFS(t, "200M"), socketPath(t)
			chardev := "socket,id=vu,path=" + socket + ",reconnect=1"
			kills, pause := 3, 1500*time.Millisecond // QEMU takes a second to come again
			if mode == "connect" {
				chardev = "socket,id=vu,path=" + socket + ",server=on"
				kills, pause = 12, 150*time.Millisecond
			}
			p := startBackEnd(t, mode, socket, image)
			g := guestlab.Boot(t, guestlab.Config{
				Kernel: "bookworm-cloud", RAM: guestlab.Memfd, CPUs: 2,
				QEMUArgs: []string{"-chardev", chardev, "-device", "vhost-user-blk-pci,chardev=vu,num-queues=2"},
			})
			ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
			defer cancel()
			if _, err := g.Run(ctx, mountScript("/dev/vda")); err != nil {
				t.Fatal(err)
			}
			type result struct {
				out string
				err error
			}
			done := make(chan result, 1)
			go func() {
				// As long as the kills go on: until a file is there.
				out, err := g.Run(ctx, "rm -f /tmp/enough; x="+fmt.Sprint(rand.IntN(1<<30))+"; until [ -e /tmp/enough ]; do set -- $x 10\n"+work+"\ndone; sync; echo 3 >/proc/sys/vm/drop_caches\n"+sumAll+"\ncd /; umount /mnt")
				done <- result{out, err}
			}()
			for range kills {
				// QEMU 7.2 gives a device up whose back end dies while it is being set up: let it come so far.
				waitWritten(t, image)
				time.Sleep(time.Duration(rand.Int64N(int64(pause))) + pause/2)
				p.kill()
				p.start()
			}
			if _, err := g.Run(ctx, ": >/tmp/enough"); err != nil {
				t.Fatal(err)
			}
			r := <-done
			if r.err != nil {
				t.Fatal(r.err)
			}
			noErrors(t, g)
			checkFS(t, image, r.out)
		})
	}
}

// waitWritten waits until something is written to a file.
func waitWritten(t *testing.T, path string) {
	t.Helper()
	var first time.Time
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if first.IsZero() {
			first = st.ModTime()
		} else if !st.ModTime().Equal(first) {
			return
		}
	}
	t.Fatal("nothing is written any more")
}

// What QEMU does to a guest while it works on our disk: stop and go on, more memory, a reset.
func TestGuestLife(t *testing.T) {
	guestlab.Need(t, "mkfs.ext4", "e2fsck", "debugfs")
	if testing.Short() {
		guestlab.Skip(t, "boots a guest; not under -short")
	}
	image, socket := newFS(t, "200M"), socketPath(t)
	disk, err := block.OpenRaw(image)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	errs := &errorList{}
	changed := make(chan struct{}, 1000)
	srv, err := New(disk, Options{Report: errs.add, MemoryChanged: func() { changed <- struct{}{} }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	served := make(chan struct{})
	serving, stop := context.WithCancel(ctx)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(served)
		srv.Serve(serving, ln)
	}()
	defer func() { stop(); <-served }()
	g := guestlab.Boot(t, guestlab.Config{
		Kernel: "bookworm-cloud", RAM: guestlab.Memfd, AllowReboot: true,
		QEMUArgs: []string{"-m", "512M,slots=2,maxmem=1G",
			"-chardev", "socket,id=vu,path=" + socket + ",reconnect=1", "-device", "vhost-user-blk-pci,chardev=vu,num-queues=1"},
	})
	q, err := qmp.Dial(ctx, g.QMPSocket(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	command := func(name string, args any) {
		t.Helper()
		if _, err := q.Run(ctx, name, args); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}

	// The memory that QEMU shares is the guest's: the kernel's banner is in it, as the guest tells it.
	banner, err := g.Run(ctx, "cat /proc/version")
	if err != nil {
		t.Fatal(err)
	}
	m, err := srv.Memory()
	if err != nil {
		t.Fatal(err)
	}
	if !contains(t, m, []byte(strings.TrimSpace(banner))) {
		t.Error("the guest's banner is not in its memory")
	}
	m.Close()

	worked := make(chan error, 1)
	var sums string
	go func() {
		var err error
		sums, err = g.Run(ctx, mountScript("/dev/vda")+"; rm -f /tmp/enough; x="+fmt.Sprint(rand.IntN(1<<30))+"; until [ -e /tmp/enough ]; do set -- $x 10\n"+work+"\ndone; sync; echo 3 >/proc/sys/vm/drop_caches\n"+sumAll+"\ncd /; umount /mnt")
		worked <- err
	}()
	for range 5 {
		time.Sleep(200 * time.Millisecond)
		command("stop", nil)
		command("cont", nil)
	}
	for len(changed) > 0 {
		<-changed
	}
	command("object-add", map[string]any{"qom-type": "memory-backend-memfd", "id": "more", "size": 256 << 20, "share": true})
	command("device_add", map[string]any{"driver": "pc-dimm", "id": "dimm", "memdev": "more"})
	select {
	case <-changed:
	case <-ctx.Done():
		t.Fatal("we were not told of the guest's new memory")
	}
	r, err := srv.Regions()
	if err != nil {
		t.Fatal(err)
	}
	total := uint64(0)
	for _, x := range r {
		total += x.Size
	}
	closeRegions(r)
	if total < 768<<20 {
		t.Errorf("%d bytes of memory", total)
	}
	if _, err := g.Run(ctx, "for m in /sys/devices/system/memory/memory*/state; do echo online >$m; done 2>/dev/null; sleep 1; : >/tmp/enough"); err != nil {
		t.Fatal(err)
	}
	if err := <-worked; err != nil {
		t.Fatal(err)
	}
	noErrors(t, g)
	checkFS(t, image, sums)

	before, err := g.System(ctx)
	if err != nil {
		t.Fatal(err)
	}
	command("system_reset", nil)
	for {
		after, err := g.System(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if after.BootID != before.BootID {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	sums, err = g.Run(ctx, mountScript("/dev/vda")+"\n"+sumAll+"\ncd /; umount /mnt")
	if err != nil {
		t.Fatal(err)
	}
	noErrors(t, g)
	checkFS(t, image, sums)
	if l := errs.all(); len(l) > 0 {
		t.Error(l)
	}
}

// contains looks for a text in a guest's memory.
func contains(t testing.TB, m *Memory, text []byte) bool {
	t.Helper()
	extents, err := m.Extents()
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1<<20)
	for _, x := range extents {
		for at := x.Start; at < x.End(); at += mem.PA(len(buf) - 4096) {
			n, err := m.ReadPhys(buf[:min(uint64(len(buf)), uint64(x.End()-at))], at)
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Contains(buf[:n], text) {
				return true
			}
		}
	}
	return false
}
