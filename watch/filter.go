package watch

import (
	"cmp"
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
	paths []string // cleaned; with flat behind it what is not watched with all below it
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

// flat ends a watchpoint that is watched with the names that are directly in it, and nothing that lies deeper.
const flat = "/."

// clean checks a watchpoint.
func clean(p string) (string, error) {
	if !strings.HasPrefix(p, "/") {
		return "", fmt.Errorf("watchpoint %q: it is to begin with /", p)
	}
	if _, err := path.Match(p, "/"); err != nil {
		return "", fmt.Errorf("watchpoint %q: %w", p, err)
	}
	if cleaned := path.Clean(p); !strings.HasSuffix(p, flat) {
		return cleaned, nil
	} else if cleaned != "/" {
		return cleaned + flat, nil
	}
	return flat, nil
}

// top is the path of a cleaned watchpoint, and whether that is all that is watched with what is directly in it.
func top(w string) (path string, isFlat bool) {
	if w == flat {
		return "/", true
	}
	return strings.CutSuffix(w, flat)
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
	if f.watched(e.Path) || e.OldPath != "" && f.watched(e.OldPath) {
		return true
	}
	// Where a directory goes, what lies in it goes.
	return e.Op == event.Rename && (e.Attr == nil || e.Attr.Kind == event.Dir) && (f.scope(e.Path) == leads || f.scope(e.OldPath) == leads)
}

// watched says whether a path is a watchpoint, or lies in one.
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
	alone         // it is watched, and nothing below it
	leads         // what is below it may be watched, some of it
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
		at, isFlat := top(w)
		switch {
		case isFlat && names(at, p), below(at, p):
			s = leads
			if !isFlat && matches(w, p) {
				return inside
			}
		case !isFlat && matches(w, p):
			return inside
		case isFlat && matches(w, p):
			s = max(s, alone)
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
	parts := split(w)
	for i, name := range split(p) {
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

// matches says whether p is what the cleaned watchpoint w names, or lies below it; of a flat one, whether it is directly in it.
func matches(w, p string) bool {
	if w, isFlat := top(w); isFlat {
		return names(w, p) || p != "/" && names(w, cmp.Or(p[:max(strings.LastIndexByte(p, '/'), 0)], "/"))
	}
	if w == "/" || p == w || strings.HasPrefix(p, w) && p[len(w)] == '/' {
		return true
	}
	return isPattern(w) && matchParts(split(w), split(p), false)
}

// names says whether p is what the path or pattern w names.
func names(w, p string) bool {
	return w == p || isPattern(w) && matchParts(split(w), split(p), true)
}

func isPattern(w string) bool { return strings.ContainsAny(w, `*?[\`) }

// split gives the names in a path; "/" and "" have none.
func split(p string) []string {
	if p = strings.TrimPrefix(p, "/"); p == "" {
		return nil
	}
	return strings.Split(p, "/")
}

// matchParts matches names one by one: all of them, or as many as there are parts. It takes at most as many steps as there are
// pairs of a part and a name: the guest makes as many names as it likes.
func matchParts(w, p []string, all bool) bool {
	star, from := -1, 0 // the last ** and how many names lie before what follows it
	for i, j := 0, 0; i < len(w) || all && j < len(p); {
		if i < len(w) && w[i] == "**" {
			star, from = i, j
			i++
			if i == len(w) {
				return true
			}
			continue
		}
		if i < len(w) && j < len(p) {
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
