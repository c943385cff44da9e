package pattern

import (
	"fmt"
	"strings"
)

// token is one word of a file of rules.
type token struct {
	kind tokenKind
	text string // as written; of strings what they stand for
	flag string // of a regular expression: the letters behind it
	num  int64
	pos  Pos
}

type tokenKind uint8

const (
	tokEnd    tokenKind = iota
	tokWord             // rule, of, NAME
	tokString           // "..."
	tokHex              // { ... } behind =
	tokRegex            // /.../ behind =
	tokNumber           // 12, 0x1f, 2KB
	tokID               // $a, $a*, $
	tokCount            // #a
	tokOther            // one sign, or two: <= >= == != ..
)

func (t token) String() string {
	switch t.kind {
	case tokEnd:
		return "the end of the file"
	case tokString:
		return fmt.Sprintf("the text %q", t.text)
	}
	return fmt.Sprintf("%q", t.text)
}

// lexer cuts a file of rules into tokens.
type lexer struct {
	s   string
	at  int
	pos Pos
}

func newLexer(s string) *lexer { return &lexer{s: s, pos: Pos{1, 1}} }

// step goes on by n bytes.
func (l *lexer) step(n int) {
	for _, c := range []byte(l.s[l.at : l.at+n]) {
		if l.pos.Col++; c == '\n' {
			l.pos.Line, l.pos.Col = l.pos.Line+1, 1
		}
	}
	l.at += n
}

func (l *lexer) rest() string { return l.s[l.at:] }

// skip passes blanks and comments.
func (l *lexer) skip() error {
	for {
		switch r := l.rest(); {
		case r == "":
			return nil
		case strings.ContainsRune(" \t\r\n", rune(r[0])):
			l.step(1)
		case strings.HasPrefix(r, "//"):
			n := strings.IndexByte(r, '\n')
			if n < 0 {
				n = len(r)
			}
			l.step(n)
		case strings.HasPrefix(r, "/*"):
			n := strings.Index(r[2:], "*/")
			if n < 0 {
				return errAt(l.pos, "a comment that does not end")
			}
			l.step(n + 4)
		default:
			return nil
		}
	}
}

func isWord(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'z'
}

func wordLen(s string) int {
	n := 0
	for n < len(s) && isWord(s[n]) {
		n++
	}
	return n
}

// next is the next token. Bytes and regular expressions are read only where a
// pattern is to come: elsewhere their first sign means something else.
func (l *lexer) next(pattern bool) (t token, err error) {
	if err := l.skip(); err != nil {
		return t, err
	}
	r := l.rest()
	t.pos = l.pos
	if r == "" {
		return t, nil
	}
	n := 1
	switch c := r[0]; {
	case pattern && c == '{':
		t.kind = tokHex
		if n, err = hexEnd(r, t.pos); err == nil {
			t.text = r[1 : n-1]
		}
	case pattern && c == '/':
		t.kind = tokRegex
		t.text, t.flag, n, err = regexEnd(r, t.pos)
	case c == '"':
		t.kind = tokString
		t.text, n, err = unquote(r, t.pos)
	case c == '$' || c == '#':
		t.kind = tokID
		if c == '#' {
			t.kind = tokCount
		}
		n += wordLen(r[1:])
		if n < len(r) && r[n] == '*' && c == '$' {
			n++
		}
		t.text = r[:n]
	case c >= '0' && c <= '9':
		t.kind = tokNumber
		n = wordLen(r)
		t.text = r[:n]
		t.num, err = number(t.text, t.pos)
	case isWord(c):
		t.kind = tokWord
		n = wordLen(r)
		t.text = r[:n]
	default:
		t.kind = tokOther
		for _, two := range []string{"<=", ">=", "==", "!=", ".."} {
			if strings.HasPrefix(r, two) {
				n = 2
			}
		}
		t.text = r[:n]
	}
	if err == nil {
		l.step(n)
	}
	return t, err
}

// number reads 12, 0x1f, 4KB and 1MB.
func number(s string, at Pos) (n int64, err error) {
	var mul int64 = 1
	digits := s
	if d, ok := strings.CutSuffix(s, "KB"); ok {
		digits, mul = d, 1<<10
	} else if d, ok := strings.CutSuffix(s, "MB"); ok {
		digits, mul = d, 1<<20
	}
	if n, ok := parseInt(digits); ok && n <= (1<<62)/mul {
		return n * mul, nil
	}
	return 0, errAt(at, "%q is no number", s)
}

func parseInt(s string) (n int64, ok bool) {
	base := int64(10)
	if h, hex := strings.CutPrefix(s, "0x"); hex {
		s, base = h, 16
	}
	for _, c := range []byte(s) {
		d, ok := digit(c)
		if !ok || int64(d) >= base || n > (1<<62)/16 {
			return 0, false
		}
		n = n*base + int64(d)
	}
	return n, s != ""
}

// digit is the value of a hexadecimal digit.
func digit(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c|0x20 >= 'a' && c|0x20 <= 'f':
		return c | 0x20 - 'a' + 10, true
	}
	return 0, false
}

// hexEnd is the length of the bytes in braces that s begins with.
func hexEnd(s string, at Pos) (int, error) {
	if n := strings.IndexByte(s, '}'); n >= 0 {
		return n + 1, nil
	}
	return 0, errAt(at, "bytes in braces that do not end")
}

// regexEnd reads the regular expression that s begins with, and the flags behind
// it.
func regexEnd(s string, at Pos) (text, flags string, n int, err error) {
	var b strings.Builder
	class := false
	for n = 1; n < len(s) && s[n] != '\n'; n++ {
		switch c := s[n]; {
		case c == '\\' && n+1 < len(s) && s[n+1] != '\n':
			n++
			if s[n] != '/' {
				b.WriteByte(c)
			}
			b.WriteByte(s[n])
			continue
		case c == '[':
			class = true
		case c == ']':
			class = false
		case c == '/' && !class:
			n++
			k := wordLen(s[n:])
			return b.String(), s[n : n+k], n + k, nil
		}
		b.WriteByte(s[n])
	}
	return "", "", 0, errAt(at, "a regular expression that does not end")
}

// unquote reads the text in quotes that s begins with.
func unquote(s string, at Pos) (text string, n int, err error) {
	var b strings.Builder
	for n = 1; n < len(s); n++ {
		switch c := s[n]; c {
		case '"':
			return b.String(), n + 1, nil
		case '\n':
			return "", 0, errAt(at, "a text that does not end")
		case '\\':
			n++
			if n == len(s) {
				return "", 0, errAt(at, "a text that does not end")
			}
			switch e := s[n]; e {
			case '"', '\\':
				b.WriteByte(e)
			case 't':
				b.WriteByte('\t')
			case 'n':
				b.WriteByte('\n')
			case 'r':
				b.WriteByte('\r')
			case 'x':
				if n+2 >= len(s) {
					return "", 0, errAt(at, "a text that does not end")
				}
				hi, ok := digit(s[n+1])
				lo, ok2 := digit(s[n+2])
				if !ok || !ok2 {
					return "", 0, errAt(Pos{at.Line, at.Col + n - 1}, `\x is followed by two hexadecimal digits`)
				}
				b.WriteByte(hi<<4 | lo)
				n += 2
			default:
				return "", 0, errAt(Pos{at.Line, at.Col + n - 1}, `a text has \", \\, \t, \n, \r and \xHH, not \%c`, e)
			}
		default:
			b.WriteByte(c)
		}
	}
	return "", 0, errAt(at, "a text that does not end")
}
