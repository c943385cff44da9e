package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// fsyncs writes small files into a directory, each made durable and renamed, until there is a file "stop" in it. It prints
// how many, and how long the slowest took in microseconds. An error of any call ends it.
func fsyncs(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("usage: rat fsync DIR")
	}
	dir := args[0]
	stop := filepath.Join(dir, "stop")
	buf := make([]byte, 4096)
	var n int
	var worst time.Duration
	for {
		if _, err := os.Lstat(stop); err == nil {
			fmt.Println(n, worst.Microseconds())
			return nil
		}
		began := time.Now()
		name := filepath.Join(dir, fmt.Sprint("f", n%50))
		f, err := os.Create(name + ".new")
		if err != nil {
			return err
		}
		if _, err := f.Write(buf); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
		if err := os.Rename(name+".new", name); err != nil {
			return err
		}
		worst = max(worst, time.Since(began))
		n++
	}
}
