package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"vmscope"
	"vmscope/detect"
)

// keeper keeps references of guests between runs of check, each in a file of a
// directory; nothing if it has none.
type keeper struct {
	dir    string
	vendor *detect.Vendor // to compare with as well; may be nil
}

func (k keeper) path(name string) string { return filepath.Join(k.dir, name+".reference") }

// load is the reference kept of the boot that is looked at, or a new one.
func (k keeper) load(v *vmscope.View) (*detect.Reference, error) {
	r, err := k.read(v)
	if err != nil {
		return nil, err
	}
	r.Vendor = k.vendor
	return r, nil
}

func (k keeper) read(v *vmscope.View) (*detect.Reference, error) {
	if k.dir == "" {
		return detect.NewReference(), nil
	}
	path := k.path(detect.ReferenceName(v))
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return detect.NewReference(), nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r, err := detect.LoadReference(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w (without the file, check begins anew)", path, err)
	}
	return r, nil
}

// save keeps a reference if it has grown. It is for the owner's eyes only: it
// holds memory of the guest.
func (k keeper) save(r *detect.Reference) error {
	if k.dir == "" || !r.Grown() {
		return nil
	}
	if err := os.MkdirAll(k.dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(k.dir, ".reference-") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // unless it was renamed
	if err := errors.Join(r.Save(f), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), k.path(r.Name()))
}
