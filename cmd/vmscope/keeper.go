package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

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
	if err := os.Rename(f.Name(), k.path(r.Name())); err != nil {
		return err
	}
	return k.prune()
}

// maxKept bounds the references in a directory, some 10 MiB each: a guest that
// boots again and again must not fill the disk.
const maxKept = 64

// prune removes the oldest references beyond the bound.
func (k keeper) prune() error {
	files, err := fs.Glob(os.DirFS(k.dir), "*.reference")
	if err != nil || len(files) <= maxKept {
		return err
	}
	age := make(map[string]time.Time, len(files))
	for _, name := range files {
		if info, err := os.Lstat(filepath.Join(k.dir, name)); err == nil {
			age[name] = info.ModTime()
		}
	}
	slices.SortFunc(files, func(a, b string) int { return age[b].Compare(age[a]) })
	var errs []error
	for _, name := range files[maxKept:] {
		errs = append(errs, os.Remove(filepath.Join(k.dir, name)))
	}
	return errors.Join(errs...)
}
