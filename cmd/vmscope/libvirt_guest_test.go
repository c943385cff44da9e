package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmscope/internal/guestlab"
	"vmscope/vm/qemu"
)

// TestLibvirtGuest looks into a guest that libvirt started, with nothing but libvirt to ask: the file of the socket of QEMU's
// monitor is gone, so that nobody else can connect to it.
func TestLibvirtGuest(t *testing.T) {
	l := guestlab.NewLibvirt(t)
	l.Start(t, "")
	image := filepath.Join(l.Dir, "image")
	guestlab.MakeFS(t, image, 64<<20, "-t", "ext4")
	l.Own(t, image)
	l.Put(t, "off.xml", []byte("<domain type='qemu'><name>off</name><memory unit='MiB'>64</memory><os><type arch='x86_64' machine='q35'>hvm</type></os></domain>"))
	virsh := func(args ...string) string {
		t.Helper()
		out, err := l.Virsh(t.Context(), args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	virsh("define", filepath.Join(l.Dir, "off.xml"))
	g := guestlab.Boot(t, guestlab.Config{
		Kernel: guestlab.TestKernels(t)[0], MemoryMiB: 256, Daemon: l, Disks: []guestlab.Disk{{Path: image}}, Modules: []string{"ext4"},
	})
	p, err := qemu.Find(g.Name())
	if err != nil || !p.Libvirt || len(p.QMP) != 1 {
		t.Fatalf("%+v, %v", p, err)
	}
	if err := os.Remove(p.QMP[0]); err != nil {
		t.Fatal(err)
	}
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	failed(t, []string{"ps", g.Name(), "--pause"}, "monitor", "no such file")
	v := &libvirtCLI{g, l, "libvirt:///" + g.Name() + "?socket=" + l.Socket(), virsh}
	t.Run("wrong", v.testWrong)
	t.Run("memory", v.testMemory)
	t.Setenv("XDG_RUNTIME_DIR", l.RuntimeDir()) // where our own daemon would listen
	t.Run("names", v.testNames)
	t.Run("watch", v.testWatch)
}

type libvirtCLI struct {
	g      *guestlab.Guest
	l      *guestlab.Libvirt
	target string
	virsh  func(args ...string) string
}

func (v *libvirtCLI) testWrong(t *testing.T) {
	at := "?socket=" + v.l.Socket()
	failed(t, []string{"ps", "libvirt:///nope" + at}, "no domain", "nope", v.g.Name(), `"off" (shut off)`)
	failed(t, []string{"ps", "libvirt:off" + at}, "off", "shut off", "virsh start")
	failed(t, []string{"watch", "libvirt:off" + at}, "off", "shut off")
	failed(t, []string{"ls", "libvirt:off" + at, "/"}, "off", "shut off")
	failed(t, []string{"ps", v.target + "-ro"}, "no daemon of libvirt answers", "-ro") // a user's has no such socket
}

// testMemory needs the monitor for registers, and to pause.
func (v *libvirtCLI) testMemory(t *testing.T) {
	holder, err := v.g.Spawn(t.Context(), guestlab.Spawn{Comm: []byte("holder")})
	if err != nil {
		t.Fatal(err)
	}
	if s := v.virsh("domstate", "--reason", v.g.Name()); s != "running (booted)" {
		t.Errorf("before: %s", s)
	}
	at := "?socket=" + v.l.Socket()
	for _, target := range []string{v.target, "libvirt:" + v.virsh("domuuid", v.g.Name()) + at, "libvirt:///" + v.virsh("domid", v.g.Name()) + at} {
		text, stderr, status := run(t, "info", target, "--json", "--registers")
		if status != 0 || !strings.Contains(text, "vCPUs map it") || !strings.Contains(text, `"release":"`+v.g.Kernel().Release+`"`) {
			t.Errorf("info %s: status %d, %s%s", target, status, text, stderr)
		}
	}
	if s := v.virsh("domstate", "--reason", v.g.Name()); s != "running (booted)" {
		t.Errorf("a look stopped it: %s", s)
	}
	type psLine struct {
		PID  int
		Comm string
	}
	if !slices.Contains(decoded[psLine](t, "ps", v.target, "--pause"), psLine{holder, "holder"}) {
		t.Error("ps --pause does not tell of the process")
	}
	if s := v.virsh("domstate", "--reason", v.g.Name()); s != "running (unpaused)" {
		t.Errorf("after --pause: %s", s)
	}
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGINT} {
		v.interrupt(t, sig)
	}
}

// interrupt ends the program while the guest is paused and it hangs in writing: the guest must run on.
func (v *libvirtCLI) interrupt(t *testing.T, sig syscall.Signal) {
	becomes := func(state string) {
		t.Helper()
		for i := 0; v.virsh("domstate", v.g.Name()) != state; i++ {
			if i == 1200 {
				t.Fatalf("%v: the guest does not get %s", sig, state)
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	cmd := vmscopeCmd("dump", v.target, "-", "--pause")
	out, err := cmd.StdoutPipe() // which nobody reads
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	becomes("paused")
	if err := cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	becomes("running")
	if _, err := v.g.Run(t.Context(), "true"); err != nil {
		t.Error(err)
	}
}

// testNames has the daemon found.
func (v *libvirtCLI) testNames(t *testing.T) {
	type vmLine struct {
		Name, Manager, Kernel string
		PID                   int
	}
	if !slices.Contains(decoded[vmLine](t, "vms"), vmLine{v.g.Name(), "libvirt", v.g.Kernel().Release, v.g.PID()}) {
		t.Error("vms does not list the guest as libvirt's")
	}
	if out, _, _ := run(t, "__complete", "ps", ""); !strings.Contains(out, "libvirt:///"+v.g.Name()+"\n") {
		t.Errorf("completion: %q", out)
	}
	if out, stderr, _ := run(t, "info", v.g.Name(), "--json", "--registers"); !strings.Contains(out, "vCPUs map it") {
		t.Errorf("by the plain name: %s%s", out, stderr)
	}
}

// testWatch attaches to the disk and leaves it, and looks at it.
func (v *libvirtCLI) testWatch(t *testing.T) {
	inGuest := func(script string) {
		t.Helper()
		if _, err := v.g.Run(t.Context(), script); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.g.Mount(t.Context(), "/dev/vda", "/srv", "ext4", ""); err != nil {
		t.Fatal(err)
	}
	inGuest("mkdir /srv/root; echo kept >/srv/root/file; sync")
	w := startWatch(t, v.target, "/srv/root")
	inGuest("cd /srv; mkdir root/foo; sync; touch root/dummy unwatched; sync; rmdir root/foo; sync")
	if got, want := strings.Join(w.until(t, "RMDIR: /srv/root/foo"), ", "), "MKDIR: /srv/root/foo, MKFILE: /srv/root/dummy, RMDIR: /srv/root/foo"; got != want {
		t.Errorf("told %s\nwant %s", got, want)
	}
	resize := []string{"blockresize", v.g.Name(), "vda", "80M"}
	if out, err := v.l.Virsh(t.Context(), resize...); err == nil {
		t.Errorf("resized while it is watched: %s", out)
	}
	if out, _, _ := run(t, "cat", v.target, "/root/file"); out != "kept\n" {
		t.Errorf("cat: %q", out)
	}
	if out, stderr, status := run(t, "watch", v.target, "--detach"); out != "1 left\n" || status != 0 {
		t.Errorf("--detach: %q, %q, status %d", out, stderr, status)
	}
	if status, stderr := w.ended(); status != 0 || !strings.Contains(stderr, "detached on request") {
		t.Errorf("made to leave: status %d, %q", status, stderr)
	}
	if left := leftInQEMU(t, v.g); len(left) > 0 {
		t.Errorf("left %s", left)
	}
	v.virsh(resize...)
	v.passFile(t)

	// Another format, whose content QEMU exports. libvirt gets the disk when it asked for it, and not before.
	snapshot := []string{"snapshot-create-as", v.g.Name(), "--disk-only", "--no-metadata", "--diskspec", "vda,file=" + filepath.Join(v.l.Dir, "snap")}
	v.virsh(snapshot...)
	if out, stderr, _ := run(t, "disks", v.target, "--json"); !strings.Contains(out, `"format":"qcow2"`) || !strings.Contains(out, fmt.Sprintf(`"size":%d`, 80<<20)) {
		t.Errorf("disks: %s%s", out, stderr)
	}
	w = startWatch(t, v.g.Name(), "/srv/root")
	inGuest("mkdir /srv/root/late; sync")
	if got := strings.Join(w.until(t, "late"), ", "); got != "MKDIR: /srv/root/late" {
		t.Errorf("told %s", got)
	}
	if out, err := v.l.Virsh(t.Context(), snapshot...); err == nil {
		t.Errorf("a snapshot while it is watched: %s", out)
	}
	if err := w.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if status, stderr := w.ended(); status != 0 && status != statusInterrupted || stderr != "" {
		t.Errorf("Ctrl-C: status %d, %q", status, stderr)
	}
	if left := leftInQEMU(t, v.g); len(left) > 0 {
		t.Errorf("Ctrl-C left %s", left)
	}
	v.virsh("blockcommit", v.g.Name(), "vda", "--active", "--pivot", "--wait")

	w = startWatch(t, v.target)
	v.virsh("destroy", v.g.Name())
	if status, stderr := w.ended(); status != 0 || !strings.Contains(stderr, "the guest has ended") {
		t.Errorf("the guest ended: status %d, %q", status, stderr)
	}
}

// passFile has libvirt pass QEMU a descriptor, which QEMU then has.
func (v *libvirtCLI) passFile(t *testing.T) {
	p, err := qemu.Find(v.g.Name())
	if err != nil {
		t.Fatal(err)
	}
	m, err := p.Monitor(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	path := filepath.Join(t.TempDir(), "passed")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	has := func() bool {
		fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p.PID))
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(fds, func(fd string) bool { to, _ := os.Readlink(fd); return to == path })
	}
	if has() {
		t.Error("it is open before")
	}
	if err := m.PassFile(t.Context(), "f", f); err != nil || !has() {
		t.Errorf("pass a descriptor: %v; QEMU has it: %v", err, has())
	}
	if _, err := m.Run(t.Context(), "closefd", map[string]string{"fdname": "f"}); err != nil || has() {
		t.Error(err, has())
	}
}
