package guestlab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// library finds a path in a line of ldd.
var library = regexp.MustCompile(`(/\S+) \(0x`)

// PutPrograms copies programs of the host, with the libraries that they need, into a guest, which has none of its own. The
// result is what a script there puts before a program's name: start+"mke2fs -q /dev/vda". A program that the host lacks
// skips the test, or fails it if guests are demanded.
func (a *Agent) PutPrograms(ctx context.Context, tb testing.TB, names ...string) (start string) {
	tb.Helper()
	start, err := a.putPrograms(ctx, names)
	if errors.Is(err, exec.ErrNotFound) {
		SkipOrFail(tb, err.Error()+": see scripts/deps")
	}
	if err != nil {
		tb.Fatal(err)
	}
	return start
}

func (a *Agent) putPrograms(ctx context.Context, names []string) (string, error) {
	if _, err := a.Run(ctx, "mkdir -p /host/lib /host/bin"); err != nil {
		return "", err
	}
	put := func(from, to string) error {
		data, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		return a.Put(ctx, to, data, 0o755)
	}
	loader, done := "", map[string]bool{}
	for _, name := range names {
		path, err := lookProgram(name)
		if err != nil {
			return "", err
		}
		if err := put(path, "/host/bin/"+name); err != nil {
			return "", err
		}
		out, err := exec.Command("ldd", path).Output()
		if err != nil {
			return "", fmt.Errorf("ldd %s: %w", path, err)
		}
		for _, m := range library.FindAllStringSubmatch(string(out), -1) {
			base := filepath.Base(m[1])
			if strings.HasPrefix(base, "ld-") {
				loader = "/host/lib/" + base
			}
			if done[base] {
				continue
			}
			done[base] = true
			if err := put(m[1], "/host/lib/"+base); err != nil {
				return "", err
			}
		}
	}
	return loader + " --library-path /host/lib /host/bin/", nil
}

// Need skips a test that lacks a program of the host, or fails it if guests are demanded; a short run has none of them. Where a user's path does not lead
// to the tools of the administrator, it does from here on, in this test.
func Need(tb testing.TB, programs ...string) {
	tb.Helper()
	if testing.Short() {
		tb.Skip("runs programs")
	}
	tb.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	for _, name := range programs {
		if _, err := exec.LookPath(name); err != nil {
			SkipOrFail(tb, "no "+name+" here: see scripts/deps")
		}
	}
}

// lookProgram looks where a user's path does not lead, too.
func lookProgram(name string) (string, error) {
	path, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if err == nil {
			break
		}
		path, err = exec.LookPath(filepath.Join(dir, name))
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, exec.ErrNotFound)
	}
	return path, nil
}
