package watch

import (
	"errors"
	"strings"
	"testing"

	"vmscope/event"
	"vmscope/fsinfer"
)

// shaft is a tree whose directories lie in each other, with inodes from 20 on, and some more in the lowest.
type shaft struct {
	deep, wide uint64
	name       string
	mode       uint32
}

func (s shaft) Names(dir uint64, visit func(string, uint64) bool) error {
	switch {
	case dir == 2:
		visit("top", 20)
	case dir < 20+s.deep:
		visit(s.name, dir+1)
	case dir == 20+s.deep:
		for i := range s.wide {
			if !visit(strings.Repeat("x", int(1+i%200))+"-"+string(rune('a'+i/200%26))+string(rune('a'+i/5200)), dir+1+i) {
				break
			}
		}
	}
	return nil
}

func (s shaft) File(uint64) (fsinfer.File, error) {
	return fsinfer.File{Attr: event.Attr{Kind: event.Dir, Mode: s.mode, Nlink: 2}}, nil
}

// TestDeepTrees: a guest may make directories in each other without end. The memory and the steps that the difference between two
// such trees takes are not more than those of any other, and what can be told is.
func TestDeepTrees(t *testing.T) {
	for _, c := range []struct {
		what       string
		paths      []string
		deep, wide uint64
		name       string
		told       int
		err        error
	}{
		{what: "long names", deep: 100_000, name: strings.Repeat("d", 255), told: 257},
		{what: "long names, watched by name", paths: []string{"/**/no"}, deep: 100_000, name: strings.Repeat("d", 255), told: 257},
		{what: "many in the lowest", deep: 8000, wide: 100_000, name: "d", err: errTangled},
		{what: "many in the lowest, which is not too low", deep: 10, wide: 1000, name: "d", told: 1012},
	} {
		f, err := newFilter(c.paths, nil)
		if err != nil {
			t.Fatal(err)
		}
		old, now := shaft{c.deep, c.wide, c.name, 0o755}, shaft{c.deep, c.wide, c.name, 0o700}
		warned := 0
		grown := func(look fsinfer.Look) *tree {
			t := newTree(64<<20, 0, "", f.scope, func(error) { warned++ })
			for !t.done() {
				t.read(look, portion)
			}
			return t
		}
		from, to := grown(old), grown(now)
		if !from.whole() || !to.whole() {
			t.Errorf("%s: not held", c.what)
			continue
		}
		told, bytes := 0, 0
		err = tellDifference(from, to, now, 1, func(e event.Event) error {
			told++
			bytes += len(e.Path)
			return nil
		})
		if !errors.Is(err, c.err) || err == nil && told != c.told || bytes > 1<<30 {
			t.Errorf("%s: told %d, %d bytes, %v", c.what, told, bytes, err)
		}
		if deep := c.deep > 1000 && c.err == nil; (warned > 0) != deep {
			t.Errorf("%s: warned %d times", c.what, warned)
		}
	}
}
