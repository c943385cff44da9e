package kernel

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Text is bytes that the guest chose where people expect text: names, paths,
// arguments. They may be no UTF-8 and may hold control characters.
type Text string

// String returns the text as it may be printed on a terminal: control
// characters, bytes that are no UTF-8, and characters that change the direction
// or are invisible come out as Go escapes, and so does the backslash.
func (t Text) String() string {
	if t.plain() {
		return string(t)
	}
	var b strings.Builder
	for s := string(t); s != ""; {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case r == '\\':
			b.WriteString(`\\`)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r < 0x20 || r == 0x7f:
			fmt.Fprintf(&b, `\x%02x`, r)
		case !unicode.IsPrint(r):
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
		s = s[n:]
	}
	return b.String()
}

func (t Text) plain() bool {
	for i := 0; i < len(t); i++ {
		if c := t[i]; c < 0x20 || c >= 0x7f || c == '\\' {
			return false
		}
	}
	return true
}

// MarshalJSON writes a JSON string. A byte that is not part of valid UTF-8
// becomes the lone surrogate U+DC00 + byte, as Python's surrogateescape (PEP
// 383) has it, so that no two different texts look alike and the bytes can be
// had back.
func (t Text) MarshalJSON() ([]byte, error) {
	b := make([]byte, 0, len(t)+2)
	b = append(b, '"')
	for s := string(t); s != ""; {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			b = fmt.Appendf(b, `\udc%02x`, s[0])
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r < 0x20 || r == 0x7f || r == 0x2028 || r == 0x2029:
			b = fmt.Appendf(b, `\u%04x`, r)
		default:
			b = append(b, s[:n]...)
		}
		s = s[n:]
	}
	return append(b, '"'), nil
}
