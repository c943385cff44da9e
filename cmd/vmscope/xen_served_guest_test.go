package main

import (
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"vmscope/internal/guestlab"
)

// xenDisk is a disk out of dom0's memory that xen-block serves.
type xenDisk struct {
	*xenCLI
	image string // its path in dom0
	vdev  string
}

// xenImage makes an empty file system.
func xenImage(t *testing.T) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	guestlab.MakeFS(t, image, 16<<20, "-t", "ext4")
	return image
}

// serve serves an image that lies in dom0.
func (x *xenCLI) serve(t *testing.T, image, vdev string) *xenDisk {
	t.Helper()
	d := &xenDisk{x, image, vdev}
	d.start(t)
	return d
}

// line is the disk's in a domain's configuration.
func (d *xenDisk) line() string {
	return fmt.Sprintf("vdev=%s,access=rw,backendtype=phy,script=block-vmscope,target=%s", d.vdev, d.image)
}

// start has xen-block serve the disk, and returns when it does; its events go to a file beside the image.
func (d *xenDisk) start(t *testing.T) {
	t.Helper()
	d.run(t, 0, fmt.Sprintf("rm -f %[1]s.err; { setsid vmscope xen-block --image %[1]s --watch /root </dev/null >>%[1]s.events 2>%[1]s.err & }", d.image))
	d.await(t, "xen-block serves", "cat "+d.image+".err", func(out string) bool { return strings.Contains(out, "serving at") })
}

// events waits for events of the disk, in this order.
func (d *xenDisk) events(t *testing.T, want ...string) {
	t.Helper()
	d.hostCLI.events(t, d.image+".events", want...)
}

// processes are those of ours that have to do with the disk: the number and the command line.
func (d *xenDisk) processes(t *testing.T) map[int]string {
	t.Helper()
	out := d.run(t, 0, `for p in /proc/[0-9]*; do [ $p/exe -ef /bin/vmscope ] && echo ${p#/proc/} $(tr '\0' ' ' <$p/cmdline); done; true`)
	all := map[int]string{}
	for line := range strings.Lines(out) {
		pid, command, _ := strings.Cut(strings.TrimSpace(line), " ")
		if n, err := strconv.Atoi(pid); err == nil && strings.Contains(command, d.image) {
			all[n] = command
		}
	}
	return all
}

// process is the one of ours whose command line begins so.
func (d *xenDisk) process(t *testing.T, name string) (pid int) {
	t.Helper()
	all := d.processes(t)
	for n, command := range all {
		if strings.HasPrefix(command, name+" ") {
			if pid != 0 {
				t.Fatalf("several processes are %s: %v", name, all)
			}
			pid = n
		}
	}
	if pid == 0 {
		t.Fatalf("no process is %s: %v", name, all)
	}
	return pid
}

// killAll kills all processes that serve the disk. They start each other anew, so it goes on until there is none.
func (d *xenDisk) killAll(t *testing.T) {
	t.Helper()
	for none := 0; none < 2; none++ {
		for pid := range d.processes(t) {
			none = -1
			d.run(t, 0, fmt.Sprintf("kill -9 %d 2>/dev/null; true", pid))
		}
	}
}

// end ends xen-block by Ctrl-C: with no guest at the disk, nothing of it is left.
func (d *xenDisk) end(t *testing.T) {
	t.Helper()
	d.run(t, 0, fmt.Sprintf("kill -INT %d", d.process(t, "vmscope")))
	d.await(t, "xen-block ends", "cat "+d.image+".err", func(string) bool { return len(d.processes(t)) == 0 })
}

// content is what the disk holds in a directory, by the programs of e2fsprogs.
func (d *xenDisk) content(t *testing.T, dir string) map[string]string {
	t.Helper()
	packed, err := d.host.Run(t.Context(), "gzip -1 -c "+d.image)
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(strings.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	tmp := t.TempDir()
	image := filepath.Join(tmp, "image")
	if err := os.WriteFile(image, data, 0o644); err != nil {
		t.Fatal(err)
	}
	// The guest had no time to unmount it: first its journal is played.
	if out, err := exec.Command("e2fsck", "-fp", image).CombinedOutput(); err != nil && exitCode(err) != 1 {
		t.Fatalf("e2fsck: %v\n%s", err, out)
	}
	if out, err := exec.Command("e2fsck", "-fn", image).CombinedOutput(); err != nil {
		t.Fatalf("e2fsck: %v\n%s", err, out)
	}
	if out, err := exec.Command("debugfs", "-R", "rdump "+dir+" "+tmp, image).CombinedOutput(); err != nil {
		t.Fatalf("debugfs: %v\n%s", err, out)
	}
	files := map[string]string{}
	found, err := filepath.Glob(filepath.Join(tmp, filepath.Base(dir), "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // a directory
		}
		files[filepath.Base(f)] = string(b)
	}
	return files
}

func exitCode(err error) int {
	if e, ok := err.(*exec.ExitError); ok {
		return e.ExitCode()
	}
	return -1
}
