package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

var errFill = errors.New("usage: rat fill create|remove DIR N")

// fill makes N empty files in a directory, or removes those that it made, and then syncs that file system. It prints how many
// nanoseconds this took by the guest's own clock: from the first call to the return of the sync, without the start of
// this process and without the way of the answer.
func fill(args []string) error {
	if len(args) != 3 {
		return errFill
	}
	n, err := strconv.Atoi(args[2])
	if err != nil || args[0] != "create" && args[0] != "remove" {
		return errFill
	}
	dir, err := syscall.Open(args[1], syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	names := make([]string, n)
	for i := range names {
		names[i] = filepath.Join(args[1], fmt.Sprint("file", i))
	}
	one := syscall.Unlink
	if args[0] == "create" {
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
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if err := syncfs(dir); err != nil {
		return err
	}
	fmt.Println(time.Since(began).Nanoseconds())
	return nil
}
