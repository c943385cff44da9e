package main

import (
	"fmt"
	"path/filepath"
	"syscall"
	"time"

	"vmscope/internal/guestlab/wire"
)

// load does a measured load and tells how long it took by the guest's own clock, without what had to be made ready before.
func load(l *wire.Load) (time.Duration, error) {
	if l.Kind == "create" || l.Kind == "remove" {
		return files(l)
	}
	return requests(l)
}

// files makes N empty files, or removes those that it made, and then syncs that file system.
func files(l *wire.Load) (time.Duration, error) {
	dir, err := syscall.Open(l.Path, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer syscall.Close(dir)
	names := make([]string, l.N)
	for i := range names {
		names[i] = filepath.Join(l.Path, fmt.Sprint("file", i))
	}
	one := syscall.Unlink
	if l.Kind == "create" {
		one = func(name string) error {
			fd, err := syscall.Open(name, syscall.O_CREAT|syscall.O_EXCL|syscall.O_WRONLY|syscall.O_CLOEXEC, 0o644)
			if err != nil {
				return err
			}
			return syscall.Close(fd)
		}
	}
	began := time.Now()
	for _, name := range names {
		if err := one(name); err != nil {
			return 0, fmt.Errorf("%s: %w", name, err)
		}
	}
	err = syncfs(dir)
	return time.Since(began), err
}

// requests makes N requests of a file, one behind the other.
func requests(l *wire.Load) (time.Duration, error) {
	flags, ok := map[string]int{"write": syscall.O_WRONLY | syscall.O_DIRECT, "read": syscall.O_DIRECT, "cached": syscall.O_WRONLY, "fsync": syscall.O_WRONLY}[l.Kind]
	if !ok || l.Length <= 0 {
		return 0, fmt.Errorf("no such load: %+v", l)
	}
	fd, err := syscall.Open(l.Path, flags|syscall.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", l.Path, err)
	}
	defer syscall.Close(fd)
	buf, err := syscall.Mmap(-1, 0, l.Length, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON|syscall.MAP_POPULATE)
	if err != nil {
		return 0, err
	}
	defer syscall.Munmap(buf)
	began := time.Now()
	for i := range l.N {
		n, err := 0, error(nil)
		if l.Kind == "read" {
			n, err = syscall.Pread(fd, buf, int64(i*l.Length))
		} else {
			n, err = syscall.Pwrite(fd, buf, int64(i*l.Length))
		}
		if err == nil && n < l.Length {
			err = fmt.Errorf("%d of %d bytes", n, l.Length)
		}
		if err == nil && l.Kind == "fsync" {
			err = syscall.Fsync(fd)
		}
		if err != nil {
			return 0, fmt.Errorf("%s of %s: %w", l.Kind, l.Path, err)
		}
	}
	if l.Kind == "cached" {
		err = syscall.Fsync(fd)
	}
	return time.Since(began), err
}
