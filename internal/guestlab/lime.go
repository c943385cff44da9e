package guestlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
)

// headersPackage is what the headers of a kernel need to build modules for it.
var headersPackage = regexp.MustCompile(`^linux-(headers|kbuild)-`)

// Lime returns the path here of LiME, Debian's lime-forensics-dkms, as a module for a kernel of the lab: fetched and built
// unless the cache has it, which takes 15 MB and some seconds. A mirror that no longer has the headers of that very kernel
// skips the test; so does a host without make or gcc, unless guests are demanded.
func Lime(tb testing.TB, kernel string) (file string) {
	tb.Helper()
	if testing.Short() {
		Skip(tb, "builds a kernel module; not under -short")
	}
	file, err := buildLime(tb.Context(), kernel)
	switch {
	case errors.Is(err, errNotFetched):
		Skip(tb, err.Error())
	case errors.Is(err, ErrMissing):
		SkipOrFail(tb, err.Error())
	case err != nil:
		tb.Fatal(err)
	}
	return file
}

func buildLime(ctx context.Context, kernel string) (string, error) {
	src, err := lookupSource(kernel)
	if err != nil {
		return "", err
	}
	k, err := Fetch(ctx, kernel)
	if err != nil {
		return "", err
	}
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	base := filepath.Join(cache, "lime", k.Release)
	file := base + ".ko"
	if _, err := os.Stat(file); err == nil {
		return file, nil
	}
	unlock, err := lockFile(ctx, base+".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(file); err == nil {
		return file, nil
	}
	if err := require("apt-get", "apt-cache", "dpkg-deb", "make", "gcc"); err != nil {
		return "", err
	}
	removeLeftovers(base + ".tmp-*")
	tmp, err := os.MkdirTemp(filepath.Dir(base), k.Release+".tmp-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	root := filepath.Join(tmp, "root")
	if err := fetchLime(ctx, src, k, tmp, root); err != nil {
		return "", fmt.Errorf("guestlab: LiME and the headers of %s: %w: %w", k.Release, errNotFetched, err)
	}
	built, err := makeLime(ctx, k, root)
	if err != nil {
		return "", err
	}
	return file, os.Rename(built, file)
}

// fetchLime unpacks LiME's source and the headers into root.
func fetchLime(ctx context.Context, src source, k *Kernel, tmp, root string) error {
	suite := src.suites[0]
	apt, err := newPrivateApt(ctx, filepath.Join(tmp, "apt"), hostMirrors("/etc/apt"), k.Arch, []string{suite, suite + "-security"})
	if err != nil {
		return err
	}
	packages, err := apt.closure(ctx, headersPackage, "lime-forensics-dkms", "linux-headers-"+k.Release)
	if err != nil {
		return err
	}
	return apt.unpack(ctx, root, packages...)
}

// makeLime builds the module of what is in root.
func makeLime(ctx context.Context, k *Kernel, root string) (string, error) {
	headers := filepath.Join(root, "usr/src/linux-headers-"+k.Release)
	makefile := filepath.Join(headers, "Makefile")
	text, err := os.ReadFile(makefile)
	if err != nil {
		return "", err
	}
	// It includes the one of the headers that kernels have in common, by its place once installed.
	text = bytes.ReplaceAll(text, []byte(" /usr/src/"), []byte(" "+root+"/usr/src/"))
	if err := os.WriteFile(makefile, text, 0o644); err != nil {
		return "", err
	}
	source, err := one(root, "usr/src/lime-forensics-*")
	if err != nil {
		return "", err
	}
	// The compiler that the kernel was built with may not be the host's.
	cmd := exec.CommandContext(ctx, "make", "-C", headers, "M="+source, "CC=gcc", "modules")
	cmd.Env = append(os.Environ(), "LC_ALL=C", "MAKEFLAGS=") // not those of a make that runs the tests
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("guestlab: build LiME for %s: %w: %s", k.Release, err, bytes.TrimSpace(out))
	}
	return filepath.Join(source, "lime.ko"), nil
}
