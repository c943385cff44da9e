package pattern

import (
	"fmt"
	"regexp/syntax"
	"strconv"
	"strings"
)

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

// class is a regular expression of the bytes that fit.
func class(u unit) string {
	switch u.mask {
	case 0xff:
		return fmt.Sprintf(`\x{%02x}`, u.val)
	case 0:
		return "(?s:.)"
	}
	var b strings.Builder
	b.WriteByte('[')
	for c := range 256 {
		if u.fits(byte(c)) {
			fmt.Fprintf(&b, `\x{%02x}`, c)
		}
	}
	b.WriteByte(']')
	return b.String()
}

// maxProgram bounds the instructions of a regular expression.
const maxProgram = 20000

// parseRegex parses a regular expression whose characters stand for bytes: each
// byte of the text is made a character of its own.
func parseRegex(text string, m Modifiers, at Pos) (*syntax.Regexp, error) {
	flags := syntax.Perl
	if m.NoCase {
		flags |= syntax.FoldCase
	}
	if m.DotAll {
		flags |= syntax.DotNL
	}
	chars := make([]rune, len(text))
	for i, c := range []byte(text) {
		chars[i] = rune(c)
	}
	re, err := syntax.Parse(string(chars), flags)
	if err != nil {
		return nil, errAt(at, "%s", strings.TrimPrefix(err.Error(), "error parsing regexp: "))
	}
	return re, check(re, at)
}

// check refuses what has no meaning in memory.
func check(re *syntax.Regexp, at Pos) error {
	switch re.Op {
	case syntax.OpBeginLine, syntax.OpEndLine, syntax.OpBeginText, syntax.OpEndText:
		return errAt(at, "^, $, \\A and \\z are not supported: memory has no first and no last line")
	}
	for _, sub := range re.Sub {
		if err := check(sub, at); err != nil {
			return err
		}
	}
	return nil
}

// widen puts a zero behind each byte that an expression matches.
func widen(re *syntax.Regexp, at Pos) (*syntax.Regexp, error) {
	zero := &syntax.Regexp{Op: syntax.OpLiteral, Rune: []rune{0}}
	switch re.Op {
	case syntax.OpLiteral:
		out := &syntax.Regexp{Op: syntax.OpConcat}
		for _, r := range re.Rune {
			out.Sub = append(out.Sub, &syntax.Regexp{Op: syntax.OpLiteral, Flags: re.Flags, Rune: []rune{r}}, zero)
		}
		return out, nil
	case syntax.OpCharClass, syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		return &syntax.Regexp{Op: syntax.OpConcat, Sub: []*syntax.Regexp{re, zero}}, nil
	case syntax.OpWordBoundary, syntax.OpNoWordBoundary:
		return nil, errAt(at, `\b and \B are not supported together with wide`)
	}
	out := *re
	out.Sub = nil
	for _, sub := range re.Sub {
		w, err := widen(sub, at)
		if err != nil {
			return nil, err
		}
		out.Sub = append(out.Sub, w)
	}
	return &out, nil
}

// compile makes a program of an expression, and finds what to search for.
func (m *matcher) compile(re *syntax.Regexp, at Pos) error {
	variants := itemsOf(re)
	for _, v := range variants {
		if n, _ := length(v); n == 0 {
			return errAt(at, "a pattern that matches nothing at all")
		} else if n > MaxLength {
			return errAt(at, "a pattern of at least %d bytes: the most is %d", n, MaxLength)
		}
	}
	m.atoms = atomsOf(variants)
	prog, err := syntax.Compile(re.Simplify())
	if err != nil || len(prog.Inst) > maxProgram {
		return errAt(at, "a regular expression that is too large")
	}
	m.prog = newProgram(prog)
	return nil
}

// program runs a compiled expression over bytes.
type program struct {
	inst  []inst
	start uint32
}

type inst struct {
	op       syntax.InstOp
	out, arg uint32
	bytes    [4]uint64 // of an instruction that takes a byte: which
}

func newProgram(p *syntax.Prog) *program {
	out := &program{inst: make([]inst, len(p.Inst)), start: uint32(p.Start)}
	for i := range p.Inst {
		from := &p.Inst[i]
		to := &out.inst[i]
		to.op, to.out, to.arg = from.Op, from.Out, from.Arg
		switch from.Op {
		case syntax.InstRune, syntax.InstRune1, syntax.InstRuneAny, syntax.InstRuneAnyNotNL:
			to.op = syntax.InstRune
			for c := range rune(256) {
				if from.MatchRune(c) {
					to.bytes[c/64] |= 1 << (c % 64)
				}
			}
		}
	}
	return out
}

// scratch is what running programs takes. It is for one goroutine.
type scratch struct {
	now, next threads
	stack     []uint32
}

// threads are the places in a program that are reached, the preferred first.
type threads struct {
	list []uint32
	in   []uint32 // where in list a place is, if it is there
}

func (t *threads) reset(n int) {
	t.list = t.list[:0]
	if len(t.in) < n {
		t.in = make([]uint32, n)
	}
}

func (t *threads) add(pc uint32) bool {
	if k := t.in[pc]; int(k) < len(t.list) && t.list[k] == pc {
		return false
	}
	t.in[pc] = uint32(len(t.list))
	t.list = append(t.list, pc)
	return true
}

// match is how long the preferred match at start is; 0: none.
func (p *program) match(buf []byte, start int, s *scratch) int {
	s.now.reset(len(p.inst))
	s.next.reset(len(p.inst))
	end := min(len(buf), start+MaxLength)
	length := 0
	p.follow(&s.now, p.start, buf, start, s)
	for i := start; len(s.now.list) > 0; i++ {
		s.next.reset(len(p.inst))
		for _, pc := range s.now.list {
			in := &p.inst[pc]
			if in.op == syntax.InstMatch {
				length = i - start
				break // those behind are less preferred
			}
			if in.op != syntax.InstRune || i >= end {
				continue
			}
			if c := buf[i]; in.bytes[c/64]>>(c%64)&1 != 0 {
				p.follow(&s.next, in.out, buf, i+1, s)
			}
		}
		s.now, s.next = s.next, s.now
	}
	return length
}

// follow adds all that is reached from a place without taking a byte.
func (p *program) follow(t *threads, pc uint32, buf []byte, at int, s *scratch) {
	s.stack = append(s.stack[:0], pc)
	for len(s.stack) > 0 {
		pc := s.stack[len(s.stack)-1]
		s.stack = s.stack[:len(s.stack)-1]
		if !t.add(pc) {
			continue
		}
		switch in := &p.inst[pc]; in.op {
		case syntax.InstAlt, syntax.InstAltMatch:
			s.stack = append(s.stack, in.arg, in.out)
		case syntax.InstCapture, syntax.InstNop:
			s.stack = append(s.stack, in.out)
		case syntax.InstEmptyWidth:
			if empty(syntax.EmptyOp(in.arg), buf, at) {
				s.stack = append(s.stack, in.out)
			}
		}
	}
}

// empty reports whether a place between two bytes is what is asked for: the
// border of a word, or none.
func empty(op syntax.EmptyOp, buf []byte, at int) bool {
	word := func(i int) bool { return i >= 0 && i < len(buf) && isWord(buf[i]) }
	border := word(at-1) != word(at)
	return (op&syntax.EmptyWordBoundary == 0 || border) && (op&syntax.EmptyNoWordBoundary == 0 || !border)
}
