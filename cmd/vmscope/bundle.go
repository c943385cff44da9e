package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"vmscope"
	"vmscope/detect"
	"vmscope/vm"
	"vmscope/vm/dump"
)

// mayCreate says what speaks against writing a file that gets its name when it
// is whole.
func mayCreate(path string, force bool) error {
	st, err := os.Lstat(path)
	switch {
	case path == "" || path == "-":
		return errors.New("--bundle needs the name of a file")
	case err == nil && !st.Mode().IsRegular():
		return fmt.Errorf("%s is there and no file: name another", path)
	case err == nil && !force:
		return fmt.Errorf("%s exists: add --force to overwrite it", path)
	}
	_, err = os.Stat(filepath.Dir(path))
	return err
}

// bundle checks the guest and writes what was read to a file.
func (a *app) bundle(ctx context.Context, v *vmscope.View, path string, keep keeper) error {
	ref, err := keep.load(v)
	if err != nil {
		return err
	}
	about := dump.About{By: "vmscope", Time: time.Now().UTC()}
	if i, ok := debug.ReadBuildInfo(); ok {
		about.By += " " + i.Main.Version
	}
	if d, ok := v.Machine.(vm.Describer); ok {
		about.Target = d.Info().Name
	}
	progress := a.progress("bundle")
	r, err := detect.WriteBundle(ctx, v, ref, path, about, progress)
	progress(0, 0)
	if errors.Is(err, detect.ErrUnsettled) && !a.pause {
		err = fmt.Errorf("%w; --pause keeps the guest still", err)
	}
	if err == nil {
		if st, serr := os.Stat(path); serr == nil {
			a.note = fmt.Sprintf("wrote %s, %s", path, size(uint64(st.Size())))
		}
	} else {
		err = fmt.Errorf("no bundle: %w", err)
	}
	return a.told(ctx, r, errors.Join(err, keep.save(ref)))
}
