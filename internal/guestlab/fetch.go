package guestlab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrMissing is in the chain of errors that say: this host lacks a program, so no guest can be had.
var ErrMissing = errors.New("missing on this host")

// ErrNotBuilt is in the chain of errors that say: this kernel comes with no package, and scripts/arm64-kernels, which
// builds it in some minutes, was not run.
var ErrNotBuilt = fmt.Errorf("not built by scripts/arm64-kernels: %w", ErrMissing)

// CacheDir is where the lab keeps what it fetched and built: $VMSCOPE_LAB, else vmscope/lab in the user's cache
// directory. It may be deleted at any time that no lab is running.
func CacheDir() (string, error) {
	if d := os.Getenv("VMSCOPE_LAB"); d != "" {
		return filepath.Abs(d)
	}
	d, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(d, "vmscope", "lab"), nil
}

// Fetch returns the kernel of that short name, downloading it first unless the cache has it. Cost: up to 200 MB and a
// minute or two the first time, nothing after. A kernel that is no package's must have been built. Safe to call from several processes at once.
func Fetch(ctx context.Context, name string) (*Kernel, error) {
	src, err := lookupSource(name)
	if err != nil {
		return nil, err
	}
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(cache, "kernels", name)
	if k, err := openKernel(src, dir); err == nil {
		return k, nil
	}
	if src.meta == "" {
		return nil, fmt.Errorf("guestlab: kernel %s: %w", name, ErrNotBuilt)
	}
	unlock, err := lockFile(ctx, filepath.Join(cache, "kernels", name+".lock"))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if k, err := openKernel(src, dir); err == nil { // someone else fetched it while this one waited
		return k, nil
	}
	if err := require("apt-get", "apt-cache", "dpkg-deb"); err != nil {
		return nil, err
	}
	// The finished directory appears by one rename, so what exists under the final name is always complete.
	removeLeftovers(filepath.Join(cache, "kernels", name+".tmp-*"))
	tmp, err := os.MkdirTemp(filepath.Join(cache, "kernels"), name+".tmp-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	if err := fetchInto(ctx, src, tmp); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	if err := os.Rename(filepath.Join(tmp, "kernel"), dir); err != nil {
		return nil, err
	}
	return openKernel(src, dir)
}

// removeLeftovers removes what a killed program left. The caller holds the lock that whoever made it would hold.
func removeLeftovers(pattern string) {
	dirs, _ := filepath.Glob(pattern)
	for _, d := range dirs {
		os.RemoveAll(d)
	}
}

func openKernel(src source, dir string) (*Kernel, error) {
	release, err := os.ReadFile(filepath.Join(dir, "release"))
	if err != nil {
		return nil, err
	}
	return &Kernel{Name: src.name, Release: strings.TrimSpace(string(release)), Arch: src.platform.arch, Dir: dir}, nil
}

func fetchInto(ctx context.Context, src source, tmp string) error {
	apt, err := newPrivateApt(ctx, filepath.Join(tmp, "apt"), hostMirrors("/etc/apt"), src.platform.arch, src.suites)
	if err != nil {
		return err
	}
	packages, err := apt.kernelPackages(ctx, src.meta)
	if err != nil {
		return err
	}
	root := filepath.Join(tmp, "root")
	if err := apt.unpack(ctx, root, append(packages, "busybox-static")...); err != nil {
		return err
	}
	return arrange(root, filepath.Join(tmp, "kernel"))
}

// arrange moves the parts out of an unpacked file tree to the places that Kernel names. Debian has moved the kernel and
// its modules about between releases, with and without a merged /usr.
func arrange(root, dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	modules, err := one(root, "usr/lib/modules/*/kernel", "lib/modules/*/kernel")
	if err != nil {
		return err
	}
	modules = filepath.Dir(modules)
	release := filepath.Base(modules)
	for _, part := range []struct {
		to   string
		from []string
	}{
		{"vmlinuz", []string{"boot/vmlinuz-" + release, "usr/lib/modules/" + release + "/vmlinuz", "lib/modules/" + release + "/vmlinuz"}},
		{"config", []string{"boot/config-" + release, "usr/lib/modules/" + release + "/config", "lib/modules/" + release + "/config"}},
		{"busybox", []string{"bin/busybox", "usr/bin/busybox"}},
		{"modules", []string{"usr/lib/modules/" + release, "lib/modules/" + release}},
	} {
		from, err := one(root, part.from...)
		if part.to == "config" && errors.Is(err, fs.ErrNotExist) {
			continue // of use to a curious reader only
		}
		if err != nil {
			return err
		}
		if err := os.Rename(from, filepath.Join(dir, part.to)); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "release"), []byte(release+"\n"), 0o644)
}

// one finds the first match of the patterns below root.
func one(root string, patterns ...string) (string, error) {
	for _, p := range patterns {
		found, err := filepath.Glob(filepath.Join(root, p))
		if err != nil {
			return "", err
		}
		if len(found) > 0 {
			return found[0], nil
		}
	}
	return "", fmt.Errorf("guestlab: none of %s in the packages: %w", strings.Join(patterns, ", "), fs.ErrNotExist)
}

// require checks that the programs are there.
func require(programs ...string) error {
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			return fmt.Errorf("guestlab: program %s: %w", p, ErrMissing)
		}
	}
	return nil
}

// lockFile waits for the exclusive lock on the file, which is made if absent and stays.
func lockFile(ctx context.Context, name string) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("guestlab: lock %s: %w", name, err)
		}
		if err := sleep(ctx, lockPoll); err != nil {
			f.Close()
			return nil, err
		}
	}
}
