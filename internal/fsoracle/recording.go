package fsoracle

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"vmscope/internal/guestlab/wire"
)

// Recording is what a real guest did with a disk, and what it said of its file system meanwhile. Nothing of vmscope's
// own was between the two: QEMU recorded the writes, the guest's system calls told the trees.
type Recording struct {
	Meta Meta
	Base []byte // the whole disk before the first write
	Log  []byte // the writes, in the format of dm-log-writes, sectors of 512 bytes
	// Points are the trees at certain places of the log, in its order. The first one is that of the file system just
	// mounted; the last was unmounted and hence has the tree of the one before it. Of encrypted files they tell what
	// WithoutDirHash leaves of what the guest said without the key.
	Points []Point
}

// Meta says how a recording came about.
type Meta struct {
	Name    string       `json:"name"`
	About   string       `json:"about"`
	Kernel  string       `json:"kernel"`  // the lab's name of it
	Release string       `json:"release"` // uname -r
	Mke2fs  []string     `json:"mke2fs"`
	Size    int64        `json:"size"` // of the disk, bytes
	Type    string       `json:"type"` // that was mounted
	Options string       `json:"options"`
	Runs    []wire.FSOps `json:"runs"` // the operations between point and point
}

// Point is a place of a log.
type Point struct {
	// Entries is how many entries of the log there were. All writes that lead to the tree are among them, since the file
	// system had been synced; no operation began before the tree had been told.
	Entries uint64      `json:"entries"`
	What    string      `json:"what"` // mounted, synced, unmounted
	Tree    []wire.File `json:"tree,omitempty"`
}

// The files of a recording that is a directory.
const (
	metaFile  = "meta.json"
	truthFile = "truth.json"
	baseFile  = "base.img"
	logFile   = "log"
)

// ReadDir reads a recording from a directory with meta.json (Meta), truth.json (a list of Point), base.img and log.
func ReadDir(dir string) (*Recording, error) {
	var r Recording
	for name, v := range map[string]any{metaFile: &r.Meta, truthFile: &r.Points} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(data, v); err != nil {
			return nil, fmt.Errorf("fsoracle: %s of %s: %w", name, dir, err)
		}
	}
	var err error
	if r.Base, err = os.ReadFile(filepath.Join(dir, baseFile)); err != nil {
		return nil, err
	}
	if r.Log, err = os.ReadFile(filepath.Join(dir, logFile)); err != nil {
		return nil, err
	}
	r.plain()
	return &r, nil
}

// WriteTold writes the two files of a recording's directory that are not disk images or logs.
func (r *Recording) WriteTold(dir string) error {
	for name, v := range map[string]any{metaFile: &r.Meta, truthFile: r.Points} {
		data, err := json.MarshalIndent(v, "", " ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), append(data, '\n'), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (r *Recording) plain() {
	for i := range r.Points {
		r.Points[i].Tree = WithoutDirHash(r.Points[i].Tree)
	}
}
