package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"vmscope/internal/guestlab/wire"
)

// TestFSOps plays in a directory of this host, as far as its user may and its file system can.
func TestFSOps(t *testing.T) {
	dir := t.TempDir()
	req := wire.FSOps{Dir: []byte(dir), Seed: 3, Count: 300, Fsync: 50, FsyncDir: 50, Sync: 200, Many: 50, Tell: true}
	list, err := fsops(&req)
	if err != nil {
		t.Fatalf("%v, after\n%s", err, list)
	}
	done := map[string]bool{}
	for _, op := range operations {
		if strings.Contains(string(list), " "+op.name+" ") {
			done[op.name] = true
		}
	}
	if len(done) != len(operations) {
		t.Errorf("of %d kinds of operations only %v were done", len(operations), done)
	}
	out, err := fstree(&wire.FSTree{Dir: []byte(dir), Content: true})
	if errors.Is(err, syscall.EOPNOTSUPP) {
		t.Skip("this file system gives no file handles")
	}
	if err != nil {
		t.Fatal(err)
	}
	files := 0
	for dec := json.NewDecoder(bytes.NewReader(out)); dec.More(); files++ {
		var f wire.File
		if err := dec.Decode(&f); err != nil {
			t.Fatal(err)
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(filepath.Join(dir, string(f.Path)), &st); err != nil || st.Ino != f.Inode || st.Size != f.Size {
			t.Errorf("%q: %+v, %v", f.Path, f, err)
		}
	}
	want := 0
	filepath.WalkDir(dir, func(string, os.DirEntry, error) error { want++; return nil })
	if files != want {
		t.Errorf("%d files in the tree, want %d", files, want)
	}
}

func TestFSOpsRefuses(t *testing.T) {
	for name, req := range map[string]wire.FSOps{
		"an unknown operation":            {Dir: []byte(t.TempDir()), Count: 1, Only: []string{"brew"}},
		"a directory that would not stay": {Dir: []byte(t.TempDir()), Count: 1, Prepare: []wire.KeptDir{{Name: "x"}}},
		"no directory":                    {Dir: []byte("/nowhere"), Count: 1, Prepare: []wire.KeptDir{{Name: "keep"}}},
	} {
		if _, err := fsops(&req); err == nil {
			t.Errorf("%s: was taken", name)
		}
	}
}
