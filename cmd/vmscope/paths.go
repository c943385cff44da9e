package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmscope/watch"
)

// maxPathsFile bounds a file of watchpoints: each event is compared with all of them.
const maxPathsFile = 1 << 20

// pathsEvery is how often a file of watchpoints is looked at.
const pathsEvery = 250 * time.Millisecond

// loadPaths reads a file of watchpoints. It must not wait for anybody, as it would for a pipe.
func loadPaths(name string) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, fmt.Errorf("--paths-from %q: not a regular file", name)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxPathsFile+1))
	if err == nil && len(b) > maxPathsFile {
		err = fmt.Errorf("--paths-from %q: more than %d bytes", name, maxPathsFile)
	}
	return b, err
}

// parsePaths gives the paths in a file of watchpoints: all lines but comments and empty ones.
func parsePaths(name string, b []byte) (paths []string, err error) {
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		line = strings.TrimRight(line, "\r\n")
		if strings.TrimSpace(line) == "" || line[0] == '#' {
			continue
		}
		if _, err := watch.New(nil, watch.Options{Paths: []string{line}}); err != nil {
			return nil, fmt.Errorf("--paths-from %q, line %d: %w", name, n, err)
		}
		paths = append(paths, line)
	}
	return paths, nil
}

func readPaths(name string) ([]string, error) {
	b, err := loadPaths(name)
	if err != nil {
		return nil, err
	}
	return parsePaths(name, b)
}

// follow keeps the watchpoints those of the command line and of the file that --paths-from names, until ctx ends. A file that
// is gone or wrong is told once, and changes nothing.
func (t *teller) follow(ctx context.Context, w *watch.Watch, fixed []string) {
	name := t.flags.from
	if name == "" {
		return
	}
	p := &pathsFile{name: name, set: func(paths []string) error { return w.SetPaths(slices.Concat(fixed, paths)) }}
	if b, err := loadPaths(name); err != nil {
		t.warn(err)
	} else if _, err := p.take(b); err != nil {
		t.warn(err)
	}
	go func() {
		tick := time.NewTicker(pathsEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			switch n, err := p.look(); {
			case err != nil:
				t.warn(err)
			case n >= 0:
				t.warn(fmt.Errorf("%q has changed: %d paths from now on", name, n))
			}
		}
	}()
}

// pathsFile is a file of watchpoints that is looked at again and again.
type pathsFile struct {
	name string
	set  func(paths []string) error

	used []byte // what is in force
	seen []byte // at the last look
	said string // the error that was told last
}

// look gives the number of paths in the file if they are others from now on, else -1. They are taken when the file looks the
// same twice: somebody may be writing it. Each error is given once.
func (p *pathsFile) look() (int, error) {
	b, err := loadPaths(p.name)
	n := -1
	if err == nil {
		settled := bytes.Equal(b, p.seen)
		p.seen = b
		if !settled || bytes.Equal(b, p.used) && p.said == "" {
			return -1, nil
		}
		n, err = p.take(b)
	}
	switch {
	case err == nil:
		p.said = ""
		return n, nil
	case err.Error() == p.said:
		return -1, nil
	}
	p.said = err.Error()
	return -1, fmt.Errorf("%w; the paths stay as they are", err)
}

// take puts the paths of the file into force, or gives an error and changes nothing.
func (p *pathsFile) take(b []byte) (int, error) {
	paths, err := parsePaths(p.name, b)
	if err == nil {
		err = p.set(paths)
	}
	if err != nil {
		return -1, err
	}
	p.used, p.seen = b, b
	return len(paths), nil
}
