package vmscope_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vmscope"
	"vmscope/internal/guestlab"
	"vmscope/kernel/linux"
)

// TestNoLinux looks into machines that run no Linux (yet): what they do instead must be named.
func TestNoLinux(t *testing.T) {
	dir := guestlab.Unpacked(t)
	image := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(image, multibootKernel(), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		mib  int
		args []string
		says []string
	}{
		{"not started", 64, []string{"-S"}, []string{"no data at all", "not started"}},
		{"SeaBIOS", 64, nil, []string{"firmware, SeaBIOS", "disk to boot from"}},
		{"UEFI", 128, []string{"-drive", "if=pflash,format=raw,readonly=on,file=" + dir + "/usr/share/OVMF/OVMF_CODE_4M.fd"}, []string{"firmware, UEFI", "disk to boot from"}},
		{"GRUB", 64, []string{"-cdrom", dir + "/usr/lib/grub-rescue/grub-rescue-cdrom.iso"}, []string{"boot loader GRUB", "try again"}},
		{"Memtest86+", 64, []string{"-kernel", dir + "/boot/memtest86+x64.bin"}, []string{`"Memtest86+ v6.`, "vmscope reads Linux"}},
		{"multiboot", 64, []string{"-kernel", image}, []string{"multiboot kernel", "0x100000", "vmscope reads Linux"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			name := fmt.Sprintf("nolinux-%d-%s", os.Getpid(), strings.ReplaceAll(c.name, " ", "-"))
			guestlab.Bare(t, name, c.mib, c.args...)
			var last error
			until(t, func() (done bool) { // it comes from its firmware
				last = vmscope.Look(t.Context(), "qemu:"+name, func(v *vmscope.View) error { return nil })
				return last == nil || containsAll(last.Error(), c.says)
			})
			if t.Log(last); !errors.Is(last, linux.ErrNoKernel) {
				t.Errorf("%v is no ErrNoKernel", last)
			}
		})
	}
}

func containsAll(s string, words []string) bool {
	for _, w := range words {
		if !strings.Contains(s, w) {
			return false
		}
	}
	return true
}

// multibootKernel is one that halts, in the format without ELF of the Multiboot specification (3.1.2).
func multibootKernel() []byte {
	const magic, flags, base = 0x1badb002, 1 << 16, 0x100000
	b := make([]byte, 8192)
	sum := uint32(0)
	sum -= magic + flags
	for i, w := range []uint32{magic, flags, sum, base, base, base + 8192, base + 8192, base + 32} {
		binary.LittleEndian.PutUint32(b[4*i:], w)
	}
	copy(b[32:], []byte{0xfa, 0xf4, 0xeb, 0xfc}) // cli; again: hlt; jmp again
	return b
}

// TestBootSeen looks at a guest over and over while it starts: there is its firmware, then a kernel that is loaded, then
// one that comes up. It is never named as something else.
func TestBootSeen(t *testing.T) {
	if testing.Short() {
		guestlab.Skip(t, "boots a guest; not under -short")
	}
	k, err := guestlab.Fetch(t.Context(), guestlab.TestKernels(t)[0])
	if err != nil {
		guestlab.SkipOrFail(t, err.Error())
	}
	name := fmt.Sprintf("boots-%d", os.Getpid())
	guestlab.Bare(t, name, 256, "-cpu", "qemu64,-cx16", "-kernel", k.Image(), "-append", "panic=0")
	until(t, func() (done bool) {
		err := vmscope.Look(t.Context(), name, func(v *vmscope.View) error {
			if v.Release != k.Release {
				t.Errorf("Linux %q, want %q", v.Release, k.Release)
			}
			return nil
		})
		if err != nil && strings.Contains(err.Error(), "vmscope reads Linux") {
			t.Error(err)
		}
		return err == nil
	})
}

// until calls f until it is done, with pauses. Some minutes later it fails the test.
func until(t *testing.T, f func() (done bool)) {
	t.Helper()
	for range 3000 {
		if f() {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Error("it takes too long")
}
