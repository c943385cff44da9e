package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"golang.org/x/term"
)

// isTerminal reports whether the output goes to people.
func (a *app) isTerminal() bool { return isTTY(os.Stdout) }

func isTTY(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

func (a *app) colors() bool {
	switch a.color {
	case "always":
		return true
	case "never":
		return false
	}
	return a.isTerminal() && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// rows prints a list as a table or as JSON lines. A partial list comes with an
// error: both are shown.
func rows[T any](a *app, list []T, err error, header []any, row func(T) []any) error {
	if a.json || len(list) == 0 && err != nil {
		return lines(a, list, err, nil)
	}
	t := a.table(header)
	for _, x := range list {
		t.AppendRow(row(x))
	}
	t.Render()
	return err
}

// lines is rows for lists that are lines of text, each as line prints it.
func lines[T any](a *app, list []T, err error, line func(T) string) error {
	for _, x := range list {
		var werr error
		if a.json {
			werr = a.object(x)
		} else {
			_, werr = fmt.Fprintln(a.out, line(x))
		}
		if werr != nil {
			return werr
		}
	}
	return err
}

// object prints one JSON line.
func (a *app) object(x any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(x); err != nil {
		return err
	}
	_, err := a.out.Write(escaped(b.Bytes()))
	return err
}

// escaped escapes in a line of JSON what JSON may hold but a terminal should
// not: DEL, the control characters above ASCII, and those that are invisible or
// change the direction. They can only stand in strings.
func escaped(line []byte) []byte {
	special := func(r rune) bool { return r == 0x7f || r > 0x7f && !unicode.IsPrint(r) }
	if !bytes.ContainsFunc(line, special) {
		return line
	}
	var out []byte
	for _, r := range string(line) {
		switch {
		case !special(r):
			out = utf8.AppendRune(out, r)
		case r > 0xffff:
			hi, lo := utf16.EncodeRune(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, hi, lo)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
	}
	return out
}

// table is one in the plain style of ps(1): no borders, so that it pastes and
// greps well.
func (a *app) table(header []any) table.Writer {
	t := table.NewWriter()
	t.SetOutputMirror(a.out)
	s := table.StyleDefault
	s.Options = table.OptionsNoBordersAndSeparators
	s.Box.PaddingLeft, s.Box.PaddingRight = "", "  "
	s.Format.Header = text.FormatUpper
	if a.colors() {
		s.Color.Header = text.Colors{text.Bold}
	}
	t.SetStyle(s)
	t.SuppressTrailingSpaces()
	if header != nil {
		t.AppendHeader(header)
	}
	return t
}
