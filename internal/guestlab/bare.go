package guestlab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// systemPackages are of Debian's bookworm: what runs on a machine beside Linux. They are only unpacked.
var systemPackages = []string{"memtest86+", "ovmf", "grub-rescue-pc"}

// Unpacked is the directory in which the files of the packages memtest86+, ovmf and grub-rescue-pc are, downloading them
// first unless the cache has them: 10 MB. The test is skipped where they cannot be had (see SkipOrFail).
func Unpacked(tb testing.TB) string {
	tb.Helper()
	if testing.Short() {
		Skip(tb, "starts machines; not under -short")
	}
	dir, err := fetchSystems(tb.Context())
	if err != nil {
		SkipOrFail(tb, err.Error())
	}
	return dir
}

func fetchSystems(ctx context.Context) (string, error) {
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "systems")
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	unlock, err := lockFile(ctx, dir+".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := require("apt-get", "dpkg-deb"); err != nil {
		return "", err
	}
	removeLeftovers(dir + ".tmp-*")
	tmp, err := os.MkdirTemp(cache, "systems.tmp-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	apt, err := newPrivateApt(ctx, filepath.Join(tmp, "apt"), hostMirrors("/etc/apt"), amd64.arch, []string{"bookworm"})
	if err == nil {
		err = apt.unpack(ctx, filepath.Join(tmp, "root"), systemPackages...)
	}
	if err != nil {
		return "", fmt.Errorf("guestlab: packages %v: %w: %w", systemPackages, ErrMissing, err)
	}
	return dir, os.Rename(filepath.Join(tmp, "root"), dir)
}

// Bare starts a QEMU of the given name with RAM in a shared file, the machine q35 and the arguments, and nothing else
// than firmware to run. It ends with the test.
func Bare(tb testing.TB, name string, memoryMiB int, args ...string) {
	tb.Helper()
	bare(tb, amd64, name, memoryMiB, args)
}

// BareArm64 is Bare with an AArch64 machine, virt, of which even firmware is for the arguments to give.
func BareArm64(tb testing.TB, name string, memoryMiB int, args ...string) {
	tb.Helper()
	bare(tb, arm64, name, memoryMiB, args)
}

func bare(tb testing.TB, p *platform, name string, memoryMiB int, args []string) {
	tb.Helper()
	if testing.Short() {
		Skip(tb, "starts a machine; not under -short")
	}
	if err := require(p.qemu); err != nil {
		SkipOrFail(tb, err.Error())
	}
	dir, err := newRunDir()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(dir.remove)
	e := &emulator{qemu: p.qemu, exited: make(chan struct{})}
	err = e.launch(dir.qemuLog(), append([]string{
		"-name", name, "-accel", "tcg", "-display", "none", "-nodefaults", "-no-user-config",
		"-object", fmt.Sprintf("memory-backend-file,id=ram,size=%dM,mem-path=%s,share=on", memoryMiB, dir.ram()),
		"-m", fmt.Sprintf("%dM", memoryMiB), "-machine", p.machine + ",memory-backend=ram",
	}, args...)...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		e.kill()
		if said, err := os.ReadFile(dir.qemuLog()); err == nil && len(said) > 0 {
			tb.Logf("%s: %s", p.qemu, said)
		}
	})
}
