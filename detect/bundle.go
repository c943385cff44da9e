package detect

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"vmscope"
	"vmscope/mem"
	"vmscope/vm/dump"
)

// A guest that runs on changes while its pages are recorded: a recording in
// which other things are found than in the guest itself is done again.
const (
	bundleTries = 20
	bundlePause = 10 * time.Millisecond
)

// ErrUnsettled says that a guest changes too much for a bundle that shows what
// was found in it. A guest that stands still has no such trouble.
var ErrUnsettled = errors.New("the guest changes while its pages are recorded")

// WriteBundle sweeps a guest with all detectors and writes a bundle (package
// vm/dump) to path: the pages on which the same sweep, with the same findings,
// can be done again anywhere. What the memory is compared with is in it, as far
// as ref, which may be empty, knew it. About.RAM is filled in; progress may be
// nil.
//
// The bundle is opened and swept before it gets its name, so a file at path is
// whole; one that was there is replaced. The Result is the bundle's. If it
// cannot be written, the Result is that of the guest.
//
// A bundle holds what the guest's kernel had in its memory: keep it as private
// as that.
func WriteBundle(ctx context.Context, v *vmscope.View, ref *Reference, path string, about dump.About, progress func(done, total uint64)) (Result, error) {
	known := ref.clone()
	live := Sweep(ctx, v, Against(ref))
	if err := ctx.Err(); err != nil {
		return live, err
	}
	rec, err := v.NewRecording()
	if err != nil {
		return live, err
	}
	for try := range bundleTries {
		if try > 0 {
			time.Sleep(bundlePause)
		}
		var r Result
		r, err = writeBundle(ctx, rec, live, known, path, about, progress)
		if err == nil {
			return r, nil
		}
		if !errors.Is(err, ErrUnsettled) {
			break
		}
	}
	return live, err
}

// writeBundle records once, and writes what it recorded if the same is found
// there as in the guest.
func writeBundle(ctx context.Context, rec *vmscope.Recording, live Result, known *Reference, path string, about dump.About, progress func(done, total uint64)) (Result, error) {
	var r Result
	ref := known.clone()
	if err := rec.Look(ctx, func(v *vmscope.View) error {
		// What changes most is recorded first, and may tell that it is for nothing.
		r = Sweep(ctx, v, slices.DeleteFunc(All(), func(d Detector) bool { return d.Name() == "text" || d.Name() == "rodata" }))
		if err := alike(live, r, tampered); err != nil {
			return err
		}
		r = Sweep(ctx, v, Against(ref))
		Explain(v, r.Findings...) // reads what shows them
		return errors.Join(ctx.Err(), alike(live, r, tampered))
	}); err != nil {
		if ctx.Err() == nil && !errors.Is(err, mem.ErrUnreachable) {
			err = fmt.Errorf("%w: %w", ErrUnsettled, err)
		}
		return r, err
	}
	extra, err := known.differences(ref)
	if err != nil {
		return r, err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".bundle-") // mode 0600
	if err != nil {
		return r, err
	}
	defer os.Remove(f.Name()) // unless it was renamed
	if err := errors.Join(rec.Write(ctx, f, about, extra, progress), f.Close()); err != nil {
		return r, err
	}
	if err := vmscope.Look(ctx, "file:"+f.Name(), func(v *vmscope.View) error {
		again := Sweep(ctx, v, Against(&Reference{Vendor: ref.Vendor}))
		if err := alike(r, again, func(Finding) bool { return true }); err != nil {
			return errors.Join(err, again.Err())
		}
		r = again
		return ctx.Err()
	}); err != nil {
		if ctx.Err() == nil {
			err = fmt.Errorf("%w: %w", ErrUnsettled, err)
		}
		return r, err
	}
	return r, os.Rename(f.Name(), path)
}

func tampered(f Finding) bool { return f.Severity != Info }

// alike compares the findings of two sweeps that which chooses, and which checks
// could not tell, of the checks that both made.
func alike(a, b Result, which func(Finding) bool) error {
	one, other := ids(a, b, which), ids(b, a, which)
	if slices.Equal(one, other) {
		return nil
	}
	both := func(id string) bool { return slices.Contains(one, id) && slices.Contains(other, id) }
	differ := slices.DeleteFunc(slices.Concat(one, other), both)
	return fmt.Errorf("not the same was found twice: %s", strings.Join(differ[:min(len(differ), 5)], ", "))
}

// ids names what a sweep found, and which checks failed, of those that another
// made as well.
func ids(r, other Result, which func(Finding) bool) []string {
	made := func(check string) bool {
		return slices.ContainsFunc(other.Checks, func(c Check) bool { return c.Name == check })
	}
	var out []string
	for _, f := range r.Findings {
		if made(f.Check) && which(f) {
			out = append(out, f.ID)
		}
	}
	for _, c := range r.Checks {
		if c.Err != nil && made(c.Name) {
			out = append(out, "check "+c.Name+" failed")
		}
	}
	slices.Sort(out)
	return out
}
