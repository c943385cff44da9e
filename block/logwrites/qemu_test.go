package logwrites_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"vmscope/block"
	"vmscope/block/logwrites"
	"vmscope/internal/guestlab"
)

// A log that QEMU wrote gives QEMU's writes, and the image that QEMU left.
func TestQEMULog(t *testing.T) {
	guestlab.Need(t, "qemu-io")
	for _, sector := range []int{512, 4096} {
		dir := t.TempDir()
		image, log := filepath.Join(dir, "image"), filepath.Join(dir, "log")
		for _, name := range []string{image, log} {
			if err := os.WriteFile(name, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Truncate(image, 8<<20); err != nil {
			t.Fatal(err)
		}
		options := fmt.Sprintf("driver=blklogwrites,file.driver=file,file.filename=%s,log.driver=file,log.filename=%s,log-sector-size=%d,discard=unmap,file.discard=unmap", image, log, sector)
		out, err := exec.Command("qemu-io", "--image-opts", options, "-c", "write -P 0x11 0 64k", "-c", "write -f -P 0x22 8k 4k", "-c", "flush",
			"-c", "write -z 16k 3M", "-c", "discard 1M 1M", "-c", "write -P 0x33 7M 1M", "-c", "flush", "-c", "quit").CombinedOutput()
		if err != nil {
			t.Fatalf("qemu-io: %v\n%s", err, out)
		}
		base := block.Bytes(make([]byte, 8<<20))
		r, err := logwrites.Open(log, base, logwrites.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		var got []string
		for w, err := range r.Writes(context.Background()) {
			if err != nil {
				t.Fatal(err)
			}
			first := byte(0)
			if w.Data != nil {
				first = w.Data[0]
			}
			got = append(got, fmt.Sprintf("%v %#x %#x %#x", w.Op, w.Off, w.Len, first))
		}
		want := []string{"write 0x0 0x10000 0x11", "write 0x2000 0x1000 0x22", "flush 0x0 0x0 0x0", "flush 0x0 0x0 0x0",
			"zeroes 0x4000 0x100000 0x0", "zeroes 0x104000 0x100000 0x0", "zeroes 0x204000 0x100000 0x0",
			"discard 0x100000 0x100000 0x0", "write 0x700000 0x100000 0x33", "flush 0x0 0x0 0x0"}
		if len(got) == len(want)+1 { // qemu-io flushes as it closes the image
			got = got[:len(want)]
		}
		if !slices.Equal(got, want) {
			t.Errorf("sector %d:\n%q, want\n%q", sector, got, want)
		}
		disk := make([]byte, 8<<20)
		if err := block.ReadFull(r.Device(), disk, 0); err != nil {
			t.Fatal(err)
		}
		if left, err := os.ReadFile(image); err != nil || !bytes.Equal(left, disk) {
			t.Errorf("sector %d: the replayed disk is not the image (%v)", sector, err)
		}
	}
}
