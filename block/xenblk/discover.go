package xenblk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"vmscope/internal/xenbus"
)

// Vbd is a disk of a domain as the toolstack wrote it down.
type Vbd struct {
	Domain uint16 // of the front end
	Device int    // 51712 is xvda
	Name   string // of the device: xvda
	Target string // what the disk line says it is: target=
	Script string // path of the hotplug script: script=
	Mode   string // "r" or "w"
	Back   string // path of our end in the store
	Front  string // path of the guest's

	over bool // closed, and not to be used again
}

func (v Vbd) String() string { return fmt.Sprintf("disk %q of domain %d", v.Name, v.Domain) }

// ReadOnly reports whether the disk line says so.
func (v Vbd) ReadOnly() bool { return v.Mode == "r" }

// home gives the path of our own domain, whose disks for others are below it.
func home(ctx context.Context, store *xenbus.Client) (string, error) {
	id, err := store.Read(ctx, "domid")
	if errors.Is(err, fs.ErrNotExist) {
		id, err = "0", nil
	}
	return "/local/domain/" + id, err
}

// vbds lists the disks that this domain is to serve. One that is being made or removed right now may be missing.
func vbds(ctx context.Context, store *xenbus.Client, base string) ([]Vbd, error) {
	domains, err := store.List(ctx, base)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var all []Vbd
	for _, d := range domains {
		devices, lerr := store.List(ctx, base+"/"+d)
		if lerr != nil && !errors.Is(lerr, fs.ErrNotExist) {
			return all, lerr
		}
		for _, dev := range devices {
			v, rerr := readVbd(ctx, store, base+"/"+d+"/"+dev)
			switch {
			case rerr == nil:
				all = append(all, v)
			case !errors.Is(rerr, fs.ErrNotExist) && !errors.Is(rerr, errNoVbd):
				return all, rerr
			}
		}
	}
	return all, err
}

var errNoVbd = errors.New("not a vbd")

func readVbd(ctx context.Context, store *xenbus.Client, path string) (Vbd, error) {
	v := Vbd{Back: path}
	err := store.Transaction(ctx, func(t *xenbus.Tx) error {
		var id string
		for _, x := range []struct {
			name string
			to   *string
			must bool
		}{
			{"frontend", &v.Front, true}, {"frontend-id", &id, true}, {"params", &v.Target, false}, {"script", &v.Script, false},
			{"mode", &v.Mode, false}, {"dev", &v.Name, false},
		} {
			text, err := t.Read(ctx, path+"/"+x.name)
			if err != nil && (x.must || !errors.Is(err, fs.ErrNotExist)) {
				return err
			}
			*x.to = text
		}
		n, err := strconv.ParseUint(id, 10, 16)
		if err != nil {
			return errNoVbd
		}
		v.Domain = uint16(n)
		v.Device, err = strconv.Atoi(path[strings.LastIndexByte(path, '/')+1:])
		if err != nil || !strings.HasPrefix(v.Front, "/") {
			return errNoVbd
		}
		v.over, err = isOver(ctx, t, v)
		return err
	})
	return v, err
}

// isOver reports whether a vbd only waits to be removed.
func isOver(ctx context.Context, t *xenbus.Tx, v Vbd) (bool, error) {
	back, err := number(ctx, t, v.Back+"/state", stateNone)
	if err != nil || back != stateClosed {
		return false, err
	}
	online, err := number(ctx, t, v.Back+"/online", 1)
	if err != nil || online == 0 {
		return true, err
	}
	front, err := number(ctx, t, v.Front+"/state", stateNone)
	return front == stateNone, err
}

// Serve serves the vbds for which match says so, one after the other, until ctx ends: a guest that is started again has
// another one. A guest's disk that is in use then stays as it is, and whoever serves it next goes on with it.
func (s *Server) Serve(ctx context.Context, h *Host, match func(Vbd) bool) error {
	dir, err := home(ctx, h.Store)
	if err != nil {
		return err
	}
	base := dir + "/backend/vbd"
	w, err := h.Store.Watch(ctx, base)
	if err != nil {
		return err
	}
	defer w.Close()
	for {
		w.Drain()
		all, err := vbds(ctx, h.Store, base)
		if err != nil {
			return err
		}
		if i := slices.IndexFunc(all, func(v Vbd) bool { return !v.over && match(v) }); i >= 0 {
			err := s.ServeVbd(ctx, h, all[i])
			switch {
			case ctx.Err() != nil:
				return context.Cause(ctx)
			case err == nil:
				continue // it is over, or gone
			}
			s.report(&VbdError{all[i], err})
			if errors.Is(err, xenbus.ErrProtocol) {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-w.Changes():
		case <-time.After(lookEvery):
		}
	}
}

// lookEvery is how often to look without being told: what ended with an error is tried again then.
const lookEvery = 10 * time.Second

// VbdError says why a vbd is not served any more, or not yet.
type VbdError struct {
	Vbd Vbd
	Err error
}

func (e *VbdError) Error() string { return fmt.Sprintf("xen-block: %v: %v", e.Vbd, e.Err) }

// Unwrap gives the reason.
func (e *VbdError) Unwrap() error { return e.Err }
