package xen

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"vmscope/mem"
)

// windowPages is how many frames are mapped at a time: to map one costs nearly as much as to map hundreds.
const windowPages = 256

// maxWindows bounds the windows that are open together, hence the page tables that they take here: a GiB of the guest.
const maxWindows = 1024

// window is a run of guest pages that is mapped into this process.
type window struct {
	*mapping
	frames []uint64 // as Xen numbers them; 0 where there is an error
	faults []error  // of pages that the guest has not, nil where there is one
}

// windows keeps what is mapped of a domain. Each mapping holds its frames: a domain that ends while it is looked at stays
// as a corpse until they are let go.
type windows struct {
	host   *host
	domain uint16
	mu     sync.RWMutex // held for reading while somebody looks into a window
	open   map[uint64]*window
}

// look calls f with the window of a key, which is opened if need be: frames names its pages. f must not keep it.
func (w *windows) look(key uint64, frames func() ([]uint64, []error, error), f func(*window) error) error {
	w.mu.RLock()
	if v := w.open[key]; v != nil {
		defer w.mu.RUnlock()
		return f(v)
	}
	w.mu.RUnlock()
	v, err := w.mapWindow(frames)
	if err != nil {
		return err
	}
	w.mu.Lock()
	switch {
	case w.open[key] != nil: // somebody was faster
		v.unmap()
	default:
		if len(w.open) >= maxWindows {
			w.release()
		}
		w.open[key] = v
	}
	w.mu.Unlock()
	w.mu.RLock()
	defer w.mu.RUnlock()
	if v = w.open[key]; v == nil {
		return fmt.Errorf("%w: the window was closed meanwhile", mem.ErrUnreachable)
	}
	return f(v)
}

func (w *windows) mapWindow(frames func() ([]uint64, []error, error)) (*window, error) {
	list, faults, err := frames()
	if err != nil {
		return nil, err
	}
	v := &window{frames: list, faults: faults}
	// Only what is there is mapped, each page in its place: the others are mapped as frame 0 of nobody, which fails.
	if v.mapping, err = w.host.mapFrames(w.domain, list, false); err != nil {
		return nil, fmt.Errorf("%w: map %d frames of domain %d: %w", mem.ErrUnreachable, len(list), w.domain, err)
	}
	for i, errno := range v.errs {
		if v.faults[i] == nil && errno != 0 {
			v.faults[i] = frameError(errno)
		}
	}
	return v, nil
}

// frameError tells why Xen does not map a frame.
func frameError(errno unix.Errno) error {
	switch errno {
	case unix.ENOENT:
		return ErrPagedOut
	case unix.EPERM, unix.EINVAL, unix.ESRCH, unix.EFAULT, unix.ENXIO:
		return mem.ErrNoRAM
	case unix.EBUSY:
		return ErrPageTable
	}
	return fmt.Errorf("%w: Xen maps the frame not: %w", mem.ErrUnreachable, errno)
}

// release closes all windows. w.mu is held.
func (w *windows) release() error {
	var errs []error
	for key, v := range w.open {
		errs = append(errs, v.unmap())
		delete(w.open, key)
	}
	return errors.Join(errs...)
}

// Release lets go of all that is mapped.
func (w *windows) Release() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.release()
}
