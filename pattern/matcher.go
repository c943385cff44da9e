package pattern

import (
	"bytes"
	"regexp/syntax"
	"strings"
)

// unit is what one byte of a pattern may be: b&mask == val.
type unit struct{ val, mask byte }

func (u unit) fits(b byte) bool { return b&u.mask == u.val }

// matcher is one way in which a String may stand in memory: a row of units, or a
// program.
type matcher struct {
	units []unit
	exact []byte // units, where all their bits count
	prog  *program
	full  bool // FullWord
	wide  bool // its letters are followed by zeros

	atoms []atom
}

// at is how long the match is that begins at start; 0 if none does. Scratch is
// for the program.
func (m *matcher) at(buf []byte, start int, s *scratch) int {
	n := 0
	switch {
	case start < 0 || start >= len(buf):
		return 0
	case m.prog != nil:
		n = m.prog.match(buf, start, s)
	case m.exact != nil:
		if bytes.HasPrefix(buf[start:], m.exact) {
			n = len(m.exact)
		}
	case len(m.units) <= len(buf)-start:
		for i, u := range m.units {
			if !u.fits(buf[start+i]) {
				return 0
			}
		}
		n = len(m.units)
	}
	if n == 0 || m.full && !m.alone(buf, start, start+n) {
		return 0
	}
	return n
}

// alone reports whether no letter and no digit stands at either side.
func (m *matcher) alone(buf []byte, start, end int) bool {
	alnum := func(i int) bool { return i >= 0 && i < len(buf) && buf[i] != '_' && isWord(buf[i]) }
	if !m.wide {
		return !alnum(start-1) && !alnum(end)
	}
	zero := func(i int) bool { return i >= 0 && i < len(buf) && buf[i] == 0 }
	return !(alnum(start-2) && zero(start-1)) && !(alnum(end) && zero(end+1))
}

// matchers compiles a pattern: to one matcher, or to two if it is searched as it
// is and wide.
func (s *String) matchers() ([]*matcher, error) {
	if s.Text == "" {
		return nil, errAt(s.at, "an empty pattern")
	}
	var forms []bool // wide
	if !s.Wide || s.ASCII {
		forms = append(forms, false)
	}
	if s.Wide {
		forms = append(forms, true)
	}
	var out []*matcher
	for _, wide := range forms {
		m := &matcher{full: s.FullWord, wide: wide}
		var err error
		switch s.Kind {
		case Text:
			m.units = textUnits(s.Text, s.NoCase, wide)
		case Bytes:
			err = m.hex(s.Text, s.at)
		case Regex:
			var re *syntax.Regexp
			if re, err = parseRegex(s.Text, s.Modifiers, s.at); err == nil && wide {
				re, err = widen(re, s.at)
			}
			if err == nil {
				err = m.compile(re, s.at)
			}
		}
		if err != nil {
			return nil, err
		}
		if len(m.units) > MaxLength {
			return nil, errAt(s.at, "a pattern of %d bytes: the most is %d", len(m.units), MaxLength)
		}
		m.exact = exactOf(m.units)
		if m.prog == nil {
			m.atoms = atomsOf([][]item{unitItems(m.units)})
		}
		if m.atoms == nil {
			return nil, errAt(s.at, "a pattern without a byte that is always the same (three in a row, where it may begin far before them)")
		}
		out = append(out, m)
	}
	return out, nil
}

func textUnits(text string, nocase, wide bool) []unit {
	var out []unit
	for _, c := range []byte(text) {
		out = append(out, letter(c, nocase))
		if wide {
			out = append(out, unit{0, 0xff})
		}
	}
	return out
}

// letter is a byte, or a letter in either case.
func letter(c byte, nocase bool) unit {
	if nocase && (c|0x20) >= 'a' && (c|0x20) <= 'z' {
		return unit{c &^ 0x20, 0xdf}
	}
	return unit{c, 0xff}
}

func exactOf(units []unit) []byte {
	var out []byte
	for _, u := range units {
		if u.mask != 0xff {
			return nil
		}
		out = append(out, u.val)
	}
	return out
}

// hex compiles the inside of { 48 8? ?? [2-4] ( c3 | cb ) }.
func (m *matcher) hex(s string, at Pos) error {
	h := hexReader{lex: newLexer(s), base: at}
	e, err := h.alternatives(0)
	if err != nil {
		return err
	}
	if h.lex.at < len(s) {
		return h.fail("%q stands where a byte should", s[h.lex.at:h.lex.at+1])
	}
	if h.loose {
		re, err := syntax.Parse(e, syntax.Perl|syntax.DotNL)
		if err != nil {
			return h.fail("too much in braces: %v", err)
		}
		return m.compile(re, at)
	}
	m.units = h.units
	return nil
}

// hexReader reads bytes in braces, both as units and as a regular expression.
type hexReader struct {
	lex   *lexer
	base  Pos
	units []unit
	loose bool // it has alternatives, or gaps of no fixed length
	first bool // a byte was read
}

func (h *hexReader) fail(format string, args ...any) error {
	p := h.lex.pos
	if p.Line == 1 {
		p.Col += h.base.Col // of the brace
	}
	p.Line += h.base.Line - 1
	return errAt(p, format, args...)
}

// alternatives reads what stands between "|", up to ")" or the end.
func (h *hexReader) alternatives(depth int) (string, error) {
	if depth > maxNesting {
		return "", h.fail("alternatives that are more than %d deep", maxNesting)
	}
	var b strings.Builder
	gap := true // a gap may not stand here
	for {
		if err := h.lex.skip(); err != nil {
			return "", h.fail("a comment that does not end")
		}
		r := h.lex.rest()
		if r == "" || r[0] == ')' {
			if gap {
				return "", h.fail("a byte is missing")
			}
			return b.String(), nil
		}
		switch r[0] {
		case '(':
			h.loose = true
			h.lex.step(1)
			in, err := h.alternatives(depth + 1)
			if err != nil {
				return "", err
			}
			if h.lex.rest() == "" {
				return "", h.fail(`")" is missing`)
			}
			h.lex.step(1)
			b.WriteString("(?:" + in + ")")
			gap = false
		case '|':
			if depth == 0 || gap {
				return "", h.fail(`"|" stands where a byte should`)
			}
			h.lex.step(1)
			b.WriteByte('|')
			gap = true
		case '[':
			if gap {
				return "", h.fail("a gap stands where a byte should")
			}
			e, err := h.gap(r)
			if err != nil {
				return "", err
			}
			b.WriteString(e)
			gap = true
		default:
			u, ok := nibbles(r)
			if !ok {
				return "", h.fail("%q is no byte: 4f, 4?, ?f or ??", r[:min(2, len(r))])
			}
			h.units = append(h.units, u)
			b.WriteString(class(u))
			h.lex.step(2)
			gap = false
		}
		if b.Len() > 1<<20 {
			return "", h.fail("too much in braces")
		}
	}
}

// nibbles reads one byte.
func nibbles(s string) (u unit, ok bool) {
	if len(s) < 2 {
		return u, false
	}
	for _, c := range []byte(s[:2]) {
		u.val, u.mask = u.val<<4, u.mask<<4
		if c == '?' {
			continue
		}
		d, ok := digit(c)
		if !ok {
			return u, false
		}
		u.val, u.mask = u.val|d, u.mask|0xf
	}
	return u, true
}

// maxGap bounds a gap: what package syntax repeats.
const maxGap = 1000

// gap reads [4] or [2-4].
func (h *hexReader) gap(s string) (string, error) {
	in, _, ok := strings.Cut(s[1:], "]")
	if !ok {
		return "", h.fail(`"]" is missing`)
	}
	low, high, between := strings.Cut(in, "-")
	if !between {
		high = low
	}
	a, ok := parseInt(strings.TrimSpace(low))
	b, ok2 := parseInt(strings.TrimSpace(high))
	if !ok || !ok2 || a > b || b > maxGap {
		return "", h.fail("[%s] is no gap: [4] or [2-4], at most %d bytes", in, maxGap)
	}
	h.lex.step(len(in) + 2)
	if a != b {
		h.loose = true
	}
	for range a {
		h.units = append(h.units, unit{})
	}
	return "(?s:.){" + itoa(a) + "," + itoa(b) + "}?", nil
}
