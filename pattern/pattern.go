// Package pattern searches memory for byte patterns: texts, bytes with
// wildcards, regular expressions, and rules made of them in a subset of YARA's
// language, which docs/scan.md describes.
//
// ParseRules reads rules, Compile makes a Set of them, and Set.Scan finds in a
// buffer where their patterns are. What a rule's condition says of all that was
// found is for Rule.Holds.
package pattern

import "fmt"

// Rule is patterns and what must be true of them.
type Rule struct {
	Name    string
	Tags    []string
	Meta    []Meta
	Strings []String
	cond    condition
}

// Meta is one line of what a rule says about itself. Value is a string, an int64
// or a bool.
type Meta struct {
	Name  string
	Value any
}

// String is one pattern of a rule.
type String struct {
	ID   string // "$a"; "$" if it has no name
	Kind Kind
	// Text is the text itself, the inside of the braces of bytes, or the regular
	// expression without its slashes.
	Text string
	Modifiers
	at Pos
}

// Kind is how a pattern is written.
type Kind uint8

// The kinds.
const (
	Text  Kind = iota // "..."
	Bytes             // { 48 8b ?? [2-4] c3 }
	Regex             // /.../
)

// Modifiers change what a pattern matches.
type Modifiers struct {
	NoCase   bool // letters of ASCII in either case
	Wide     bool // each byte is followed by a zero, as UTF-16 has ASCII
	ASCII    bool // also as it is, beside Wide
	FullWord bool // neither a letter nor a digit stands before or behind it
	DotAll   bool // of a Regex: the dot is a line feed, too
}

// MaxLength is how many bytes one match has at most. Regular expressions are not
// followed further.
const MaxLength = 1024

// Pos is a place in a file of rules; both count from 1, the column in bytes.
type Pos struct{ Line, Col int }

// Error is what is wrong with a rule, and where.
type Error struct {
	File string
	Pos
	Msg string
}

// Error is as compilers print it.
func (e *Error) Error() string {
	if e.File == "" {
		return e.Msg
	}
	return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Col, e.Msg)
}

func errAt(p Pos, format string, args ...any) error {
	return &Error{Pos: p, Msg: fmt.Sprintf(format, args...)}
}
