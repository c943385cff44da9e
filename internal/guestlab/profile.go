package guestlab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
)

// Profile returns the path of a profile of the kernel, for those whose memory tells neither types nor variables. It is
// made by convert, of the kernel's file with DWARF that Debian's package of debug information has. The cache keeps it.
// Cost the first time: up to 1 GB to download and a minute or two, and what convert takes.
func (k *Kernel) Profile(ctx context.Context, convert func(vmlinux string, to io.Writer) error) (string, error) {
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(cache, "profiles", k.Name+"-"+k.Release)
	unlock, err := lockFile(ctx, path+".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := require("apt-get", "apt-cache", "dpkg-deb", "tar"); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(path), "tmp-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	vmlinux, err := k.debugInfo(ctx, tmp)
	if err != nil {
		return "", err
	}
	made := filepath.Join(tmp, "profile")
	f, err := os.Create(made)
	if err != nil {
		return "", err
	}
	if err := errors.Join(convert(vmlinux, f), f.Close()); err != nil {
		return "", fmt.Errorf("guestlab: debug information of %s: %w", k.Release, err)
	}
	return path, os.Rename(made, path)
}

// debugInfo takes the kernel's file out of its debug package, and leaves the modules' in it.
func (k *Kernel) debugInfo(ctx context.Context, dir string) (string, error) {
	src, err := lookupSource(k.Name)
	if err != nil {
		return "", err
	}
	apt, err := newPrivateApt(ctx, filepath.Join(dir, "apt"), hostMirrors("/etc/apt"), src.platform.arch, src.suites)
	if err != nil {
		return "", err
	}
	if _, err := apt.run(ctx, "apt-get", "download", "linux-image-"+k.Release+"-dbg"); err != nil {
		return "", err
	}
	deb, err := one(apt.dir, "debs/*.deb")
	if err != nil {
		return "", err
	}
	const boot = "usr/lib/debug/boot/vmlinux-"
	unpack := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	untar := exec.CommandContext(ctx, "tar", "-x", "-C", dir, "--occurrence=1", "./"+boot+k.Release)
	if untar.Stdin, err = unpack.StdoutPipe(); err != nil {
		return "", err
	}
	if err := unpack.Start(); err != nil {
		return "", err
	}
	out, err := untar.CombinedOutput()
	unpack.Process.Kill() // what is behind the file is of no use
	unpack.Wait()
	if err != nil {
		return "", fmt.Errorf("guestlab: %s: %w: %s", filepath.Base(deb), err, out)
	}
	return filepath.Join(dir, boot+k.Release), nil
}
