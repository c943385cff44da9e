package tap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmscope/block/nbd"
	"vmscope/block/vhostuser"
	"vmscope/internal/guestlab"
)

// serverRole makes this program one that serves a disk: see TestMain. Its value is protocol, socket and image, parted by
// spaces.
const serverRole = "VMSCOPE_TAP_TEST_SERVER"

func server(what string) int {
	f := strings.Fields(what)
	ln, err := net.Listen("unix", f[1])
	if err == nil {
		var tap *Tap
		if tap, err = Serve(context.Background(), ln, Service{Protocol: Protocol(f[0]), Image: f[2]}, Options{RingSize: 256 << 10}); err == nil {
			fmt.Println("attached")
			for err == nil {
				_, err = tap.Next(context.Background())
			}
		}
	}
	fmt.Println(err)
	return 1
}

// TestServed boots guests from disks that we serve, kills what serves them, and compares what was seen with what the
// disk holds.
func TestServed(t *testing.T) {
	t.Run("nbd", func(t *testing.T) { served(t, NBD, false) })
	t.Run("vhost-user", func(t *testing.T) { served(t, VhostUser, true) })
}

func served(t *testing.T, p Protocol, dial bool) {
	if testing.Short() {
		guestlab.Skip(t, "boots a guest; not under -short")
	}
	dir := labDir(t)
	image, socket := filepath.Join(dir, "raw.img"), filepath.Join(dir, "s")
	guestlab.MakeFS(t, image, 64*mebi, "-t", "ext4", "-b", "4096")
	seen, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	var tap *Tap
	if dial {
		tap, err = Connect(t.Context(), socket, Service{Image: image}, Options{})
	} else {
		ln, lerr := net.Listen("unix", socket)
		if lerr != nil {
			t.Fatal(lerr)
		}
		tap, err = Serve(t.Context(), ln, Service{Image: image, Protocol: p}, Options{})
	}
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	args := []string{
		"-blockdev", "driver=nbd,node-name=served,server.type=unix,server.path=" + socket + ",reconnect-delay=5,discard=unmap",
		"-device", "virtio-blk-pci,drive=served",
	}
	if p == VhostUser {
		args = []string{"-chardev", "socket,id=served,path=" + socket + ",server=on,wait=off", "-device", "vhost-user-blk-pci,chardev=served"}
	}
	g := guestlab.Boot(t, guestlab.Config{Kernel: "bookworm-cloud", MemoryMiB: 256, Modules: []string{"virtio_blk", "ext4"}, QEMUArgs: args})
	if err := g.Mount(t.Context(), "/dev/vda", "/mnt", "ext4", ""); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		stop := load(t, g)
		time.Sleep(300 * time.Millisecond)
		r, _ := helpers(t, tap)
		sig(t, r, syscall.SIGKILL)
		helpers(t, tap, r)
		time.Sleep(300 * time.Millisecond)
		n, worst := stop()
		t.Logf("%d writes, the slowest %v", n, worst)
	}
	shares(t, tap, p)
	run(t, g, "umount /mnt")
	// Each write was seen, also those around the killing: what was not answered was sent again.
	for {
		n := len(seen)
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		w, err := tap.Next(ctx)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			break
		}
		if err == nil && w.Len > 0 && w.End() <= int64(n) {
			if w.Data != nil {
				copy(seen[w.Off:w.End()], w.Data)
			} else {
				clear(seen[w.Off:w.End()])
			}
		}
	}
	now, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(seen, now) {
		t.Error("the writes do not lead to what the image holds")
	}
	run(t, g, "mount -t ext4 /dev/vda /mnt")
	// We leave; the disk does not.
	tap.Close()
	if n := tap.Serving(); n != 1 {
		t.Errorf("%d clients are served on", n)
	}
	run(t, g, "dd if=/dev/zero of=/mnt/after bs=4k count=1 conv=fsync 2>/dev/null")
	g.Close()
	nobody(t)
	if _, err := os.Stat(socket); err == nil && !dial {
		t.Error("the socket is left")
	}
}

// shares: by vhost-user, and only so, a tap hands over the guest's memory, also behind the end of a receiver.
func shares(t *testing.T, tap *Tap, p Protocol) {
	t.Helper()
	list, err := tap.Regions(t.Context())
	if p != VhostUser {
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("memory of a guest by %s: %d regions, %v", p, len(list), err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	m, err := vhostuser.OpenMemory(list)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if i := m.Info(); i.RAM < 255*mebi || i.RAM > 256*mebi || !i.Live {
		t.Errorf("%+v", i)
	}
	again, err := tap.Regions(t.Context())
	if err != nil || !m.Is(again) || m.Is(again[1:]) {
		t.Errorf("asked again: %d regions of %d, %v", len(again), len(list), err)
	}
	again[0].Offset += 4096
	if m.Is(again) {
		t.Error("another place in the file is the same memory")
	}
	for _, r := range again {
		r.File.Close()
	}
}

// TestServerDies kills the program that serves a disk: whoever is connected notices nothing.
func TestServerDies(t *testing.T) {
	dir := labDir(t)
	image, socket := filepath.Join(dir, "raw.img"), filepath.Join(dir, "s")
	if err := os.WriteFile(image, make([]byte, mebi), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), serverRole+"=nbd "+socket+" "+image)
	started(t, cmd)
	c, err := nbd.Dial(t.Context(), "nbd+unix:///?socket="+socket, nbd.Options{Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		b := bytes.Repeat([]byte{byte(i + 1)}, 4096)
		if _, err := c.WriteAt(b, int64(i)*8192); err != nil {
			t.Fatal(i, err)
		}
		if err := c.Flush(); err != nil {
			t.Fatal(i, err)
		}
		if i == 1 {
			cmd.Process.Kill()
			cmd.Wait()
			time.Sleep(200 * time.Millisecond)
		}
	}
	if len(ours(t)) == 0 {
		t.Error("who serves?")
	}
	c.Close()
	nobody(t)
	b, err := os.ReadFile(image)
	if err != nil || b[0] != 1 || b[8192] != 2 || b[16384] != 3 {
		t.Error("the writes are not in the image", err)
	}
}
