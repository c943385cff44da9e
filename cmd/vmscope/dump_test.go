package main

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// TestCreateRemoves checks that half a dump does not stay, and that nothing else
// goes with it.
func TestCreateRemoves(t *testing.T) {
	dir := t.TempDir()
	a := &app{out: new(bytes.Buffer), err: new(bytes.Buffer)}
	gone := errors.New("the guest is gone")
	write := func(path string, err error) error {
		t.Helper()
		out, done, cerr := a.create(path, true)
		if cerr != nil {
			t.Fatal(cerr)
		}
		if _, err := out.Write([]byte("half")); err != nil {
			t.Fatal(err)
		}
		return done(err)
	}
	exists := func(path string) bool {
		_, err := os.Lstat(path)
		return !errors.Is(err, fs.ErrNotExist)
	}
	file, link := filepath.Join(dir, "core"), filepath.Join(dir, "link")
	if err := write(file, nil); err != nil || !exists(file) {
		t.Error(err)
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("a core that others can read: %v, %v", st.Mode(), err)
	}
	if _, _, err := a.create(file, false); err == nil {
		t.Error("a file is overwritten unasked")
	}
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	if err := write(link, gone); !errors.Is(err, gone) || !exists(link) || !exists(file) {
		t.Errorf("a link is removed (%v)", err)
	}
	device := filepath.Join(dir, "null")
	if err := os.Symlink(os.DevNull, device); err != nil {
		t.Fatal(err)
	}
	if err := write(device, gone); !errors.Is(err, gone) || !exists(device) || !exists(os.DevNull) {
		t.Errorf("a device is removed (%v)", err)
	}
	if err := write(file, gone); !errors.Is(err, gone) || exists(file) {
		t.Errorf("half a dump stays (%v)", err)
	}
}
