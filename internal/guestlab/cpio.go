package guestlab

import (
	"fmt"
	"io"
	"os"
	"path"
	"strings"
)

// cpioWriter writes an archive in the "newc" format that the kernel unpacks into its first root file system.
// (Linux Documentation/driver-api/early-userspace/buffer-format.rst.)
type cpioWriter struct {
	w    io.Writer
	ino  uint32
	dirs map[string]bool
	err  error // sticky
}

const (
	cpioDir     = 0o040000
	cpioFile    = 0o100000
	cpioSymlink = 0o120000
	cpioChar    = 0o020000
	trailer     = "TRAILER!!!"
)

// newCpio begins an archive. The root directory comes first with mode 0755: without an entry of its own it gets 0700,
// and no process but root's could then reach any file.
func newCpio(w io.Writer) *cpioWriter {
	c := &cpioWriter{w: w, dirs: map[string]bool{}}
	c.dir("/", 0o755)
	return c
}

// dir adds a directory, and before it those above it.
func (c *cpioWriter) dir(name string, perm uint32) {
	name = path.Clean("/" + name)
	if c.dirs[name] {
		return
	}
	if name != "/" {
		c.dir(path.Dir(name), 0o755)
	}
	c.dirs[name] = true
	c.entry(name, cpioDir|perm, 2, 0, 0, nil)
}

func (c *cpioWriter) file(name string, perm uint32, data []byte) {
	c.dir(path.Dir(path.Clean("/"+name)), 0o755)
	c.entry(name, cpioFile|perm, 1, 0, 0, data)
}

// copyAll adds files of this machine, mode 0755, by their names in the archive.
func (c *cpioWriter) copyAll(files map[string]string) error {
	for name, from := range files {
		if err := c.copy(name, from, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// copy adds a file of this machine.
func (c *cpioWriter) copy(name, from string, perm uint32) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	c.file(name, perm, data)
	return c.err
}

func (c *cpioWriter) symlink(name, target string) {
	c.dir(path.Dir(path.Clean("/"+name)), 0o755)
	c.entry(name, cpioSymlink|0o777, 1, 0, 0, []byte(target))
}

func (c *cpioWriter) charDevice(name string, perm, major, minor uint32) {
	c.dir(path.Dir(path.Clean("/"+name)), 0o755)
	c.entry(name, cpioChar|perm, 1, major, minor, nil)
}

// close ends the archive and reports the first error of all calls.
func (c *cpioWriter) close() error {
	c.ino = 0 // the trailer has none; entry adds one
	c.entry(trailer, 0, 1, 0, 0, nil)
	return c.err
}

func (c *cpioWriter) entry(name string, mode, nlink, major, minor uint32, data []byte) {
	if name != trailer {
		name = strings.TrimPrefix(path.Clean("/"+name), "/")
		if name == "" {
			name = "."
		}
	}
	c.ino++
	// Owner, group and time are zero: the same inputs give the same archive.
	c.printf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		c.ino, mode, 0, 0, nlink, 0, len(data), 0, 0, major, minor, len(name)+1, 0, name)
	c.pad(110 + len(name) + 1)
	c.write(data)
	c.pad(len(data))
}

// pad fills up to four bytes after n bytes that began on a boundary of four.
func (c *cpioWriter) pad(n int) { c.write(make([]byte, -n&3)) }

func (c *cpioWriter) printf(format string, args ...any) {
	if c.err == nil {
		_, c.err = fmt.Fprintf(c.w, format, args...)
	}
}

func (c *cpioWriter) write(p []byte) {
	if c.err == nil && len(p) > 0 {
		_, c.err = c.w.Write(p)
	}
}
