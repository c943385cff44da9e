package watch

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"

	"vmscope/event"
)

// filter decides which events are told. Its watchpoints can be changed while it is used.
type filter struct {
	mu    sync.RWMutex
	paths []string // cleaned
	all   bool
	ops   []event.Op
	turn  uint64 // rises when watchpoints change
}

func newFilter(paths []string, ops []event.Op) (*filter, error) {
	f := &filter{ops: ops, all: len(paths) == 0}
	for _, p := range paths {
		if err := f.add(p); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// clean checks a watchpoint.
func clean(p string) (string, error) {
	if !strings.HasPrefix(p, "/") {
		return "", fmt.Errorf("watchpoint %q: it is to begin with /", p)
	}
	if _, err := path.Match(p, "/"); err != nil {
		return "", fmt.Errorf("watchpoint %q: %w", p, err)
	}
	return path.Clean(p), nil
}

func (f *filter) add(p string) error {
	p, err := clean(p)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.Contains(f.paths, p) {
		f.paths = append(f.paths, p)
		f.turn++
	}
	return nil
}

func (f *filter) remove(p string) bool {
	p, err := clean(p)
	if err != nil {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	i := slices.Index(f.paths, p)
	if i < 0 {
		return false
	}
	f.paths = slices.Delete(f.paths, i, i+1)
	f.turn++
	return true
}

// set puts others in place of all watchpoints, or changes nothing.
func (f *filter) set(paths []string) error {
	cleaned := make([]string, len(paths))
	for i, p := range paths {
		var err error
		if cleaned[i], err = clean(p); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.paths, f.all = cleaned, false
	f.turn++
	return nil
}

// passes says whether an event is told.
func (f *filter) passes(e *event.Event) bool {
	if e.Op == event.Lost || e.Op == event.Attached {
		return true
	}
	if len(f.ops) > 0 && !slices.Contains(f.ops, e.Op) {
		return false
	}
	if e.Op == event.Mount || e.Op == event.Unmount {
		return true
	}
	return f.watched(e.Path) || e.OldPath != "" && f.watched(e.OldPath)
}

// watched says whether a path is, or lies below, a watchpoint, or is a directory that a watchpoint lies in: what happens to
// that happens to the watchpoint.
func (f *filter) watched(p string) bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.all {
		return true
	}
	for _, w := range f.paths {
		if matches(w, p) {
			return true
		}
	}
	return false
}

// scope is how a path lies to the watchpoints.
type scope uint8

const (
	outside scope = iota
	leads         // what is below it may be watched
	inside        // it is watched, and all below it
)

// scope says how a path lies to the watchpoints.
func (f *filter) scope(p string) scope {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.all {
		return inside
	}
	s := outside
	for _, w := range f.paths {
		if matches(w, p) {
			return inside
		}
		if below(w, p) {
			s = leads
		}
	}
	return s
}

// changes counts the changes of watchpoints.
func (f *filter) changes() uint64 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.turn
}

// below says whether the watchpoint w may name something below p.
func below(w, p string) bool {
	if p == "/" {
		return true
	}
	parts, names := strings.Split(w[1:], "/"), strings.Split(p[1:], "/")
	for i, name := range names {
		if i >= len(parts) {
			return false
		}
		if parts[i] == "**" {
			return true
		}
		if ok, _ := path.Match(parts[i], name); !ok {
			return false
		}
	}
	return true
}

// matches says whether p is what the watchpoint w names, or lies below it.
func matches(w, p string) bool {
	if w == "/" || p == w || strings.HasPrefix(p, w) && p[len(w)] == '/' {
		return true
	}
	if !strings.ContainsAny(w, `*?[\`) {
		return false
	}
	return matchParts(strings.Split(w[1:], "/"), strings.Split(strings.TrimPrefix(p, "/"), "/"))
}

// matchParts matches names one by one. All below what matches, matches. It takes at most as many steps as there are pairs of
// a part and a name: the guest makes as many names as it likes.
func matchParts(w, p []string) bool {
	star, from := -1, 0 // the last ** and how many names lie before what follows it
	for i, j := 0, 0; i < len(w); {
		if w[i] == "**" {
			star, from = i, j
			i++
			continue
		}
		if j < len(p) {
			if ok, _ := path.Match(w[i], p[j]); ok {
				i, j = i+1, j+1
				continue
			}
		}
		if star < 0 || j >= len(p) {
			return false
		}
		from++ // that ** stands for one name more
		i, j = star+1, from
	}
	return true
}
