package libvirt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// run is where daemons put their sockets, the system's and those of users who are logged in.
const run = "/run"

// names are those of the daemon of QEMU alone, and of the one for all hypervisors, or what stands in for it.
var names = []string{"virtqemud-sock", "libvirt-sock"}

// Dirs lists the directories in which a daemon may listen whose QEMUs user uid runs: the system's, ours, and that of the
// user. uid -1 stands for all users.
func Dirs(uid int) []string {
	which := "*"
	if uid >= 0 {
		which = strconv.Itoa(uid)
	}
	users, _ := filepath.Glob(filepath.Join(run, "user", which))
	var out []string
	for _, d := range append([]string{run, ours()}, users...) {
		if d = filepath.Join(d, "libvirt"); !holds(out, d) {
			out = append(out, d)
		}
	}
	return out
}

// holds reports whether a directory is among others, or is not there.
func holds(all []string, dir string) bool {
	st, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return true
	}
	for _, d := range all {
		o, oerr := os.Stat(d)
		if d == dir || err == nil && oerr == nil && os.SameFile(st, o) {
			return true
		}
	}
	return false
}

// ours is the directory of our own user's daemon (libvirt's virGetUserRuntimeDirectory).
func ours() string {
	if d := os.Getenv("XDG_RUNTIME_DIR"); d != "" {
		return d
	}
	d, _ := os.UserCacheDir()
	return d
}

// DialIn connects to the daemon that listens in a directory.
func DialIn(ctx context.Context, dir string) (*Conn, error) {
	for _, n := range names {
		c, err := Dial(ctx, filepath.Join(dir, n))
		if !errors.Is(err, ErrNoDaemon) { // else what an earlier daemon left
			return c, err
		}
	}
	return nil, fmt.Errorf("%w in %q (%s)", ErrNoDaemon, dir, strings.Join(names, ", "))
}
