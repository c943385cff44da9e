package part

import (
	"strconv"
)

// The text in which LVM2 keeps a volume group: nested sections of settings
// (libdm/libdm-config.c).
//
//	name { key = 1  list = ["a", 2]  inner { … } }

// maxDepth bounds how deep sections may nest; LVM2 needs four.
const maxDepth = 16

// section holds settings and sections by name, in the order of the text.
type section struct {
	keys   []string
	values map[string]any // int64, string, float64, []any, *section
}

func (s *section) section(key string) *section {
	v, _ := s.values[key].(*section)
	return v
}

func (s *section) text(key string) string {
	v, _ := s.values[key].(string)
	return v
}

// number gives a number, or -1 where there is none, or a negative one.
func (s *section) number(key string) int64 {
	if v, ok := s.values[key].(int64); ok && v >= 0 {
		return v
	}
	return -1
}

// list gives a list; a single value is a list of one.
func (s *section) list(key string) []any {
	switch v := s.values[key].(type) {
	case []any:
		return v
	case nil, *section:
		return nil
	default:
		return []any{v}
	}
}

// has reports whether a list of strings holds one.
func (s *section) has(key, word string) bool {
	for _, v := range s.list(key) {
		if v == word {
			return true
		}
	}
	return false
}

// lvmText reads the text; each step takes at least one byte of it.
type lvmText struct {
	p   []byte
	off int
	err error
}

// parseLVMText reads a whole text.
func parseLVMText(p []byte) (*section, error) {
	t := &lvmText{p: p}
	s := t.section(0)
	return s, t.err
}

func (t *lvmText) fail(what string) {
	if t.err == nil {
		t.err = inconsistent("metadata, byte %d: %s", t.off, what)
	}
}

// peek passes over space and comments and gives the next byte; 0 at the end.
func (t *lvmText) peek() byte {
	comment := false
	for ; t.off < len(t.p) && t.err == nil; t.off++ {
		switch c := t.p[t.off]; {
		case c == '\n':
			comment = false
		case comment || c == ' ' || c == '\t' || c == '\r':
		case c == '#':
			comment = true
		case c == 0: // the text ends in NULs
			return 0
		default:
			return c
		}
	}
	return 0
}

// take passes over c if it comes next.
func (t *lvmText) take(c byte) bool {
	if t.peek() != c {
		return false
	}
	t.off++
	return true
}

// isWord reports whether c may stand in a name or in a number.
func isWord(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-' || c == '+' || c == '.' || c == '/' || c == '@'
}

func (t *lvmText) word() string {
	t.peek()
	start := t.off
	for t.off < len(t.p) && isWord(t.p[t.off]) {
		t.off++
	}
	return string(t.p[start:t.off])
}

// section reads up to its closing brace, or the text's end.
func (t *lvmText) section(depth int) *section {
	s := &section{values: map[string]any{}}
	if depth > maxDepth {
		t.fail("sections nest too deep")
		return s
	}
	for t.err == nil {
		switch c := t.peek(); {
		case c == 0 && depth > 0:
			t.fail("the text ends in a section")
			return s
		case c == 0:
			return s
		case c == '}' && depth > 0:
			t.off++
			return s
		}
		key := t.word()
		if key == "" {
			t.fail("no name where one is due")
			return s
		}
		var v any
		switch {
		case t.take('{'):
			v = t.section(depth + 1)
		case t.take('='):
			v = t.value()
		default:
			t.fail("neither = nor { behind a name")
			return s
		}
		if _, twice := s.values[key]; !twice {
			s.keys = append(s.keys, key)
		}
		s.values[key] = v // LVM takes the last one
	}
	return s
}

func (t *lvmText) value() any {
	if !t.take('[') {
		return t.scalar()
	}
	list := []any{}
	for t.err == nil && !t.take(']') {
		list = append(list, t.scalar())
		if !t.take(',') && t.peek() != ']' {
			t.fail("no , or ] in a list")
		}
	}
	return list
}

func (t *lvmText) scalar() any {
	if t.take('"') {
		return t.quoted()
	}
	w := t.word()
	if n, err := strconv.ParseInt(w, 10, 64); err == nil {
		return n
	}
	f, err := strconv.ParseFloat(w, 64)
	if err != nil {
		t.fail("no value where one is due")
	}
	return f
}

// quoted reads up to the closing quote.
func (t *lvmText) quoted() string {
	var out []byte
	for ; t.off < len(t.p); t.off++ {
		switch c := t.p[t.off]; {
		case c == '"':
			t.off++
			return string(out)
		case c == '\\' && t.off+1 < len(t.p):
			t.off++
			out = append(out, t.p[t.off])
		default:
			out = append(out, c)
		}
	}
	t.fail("the text ends in a string")
	return ""
}
