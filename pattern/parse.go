package pattern

import (
	"errors"
	"slices"
	"strings"
)

const (
	maxRules   = 10000
	maxStrings = 10000 // of one rule
	maxNesting = 100   // of a condition
)

// ParseRules reads the rules in a file of that name. What a rule has and this
// subset of the language has not is an *Error that names it: no rule is taken
// for another.
func ParseRules(file, text string) ([]*Rule, error) {
	p := &parser{lex: newLexer(text)}
	rules, err := p.rules()
	if e := (*Error)(nil); errors.As(err, &e) {
		e.File = file
	}
	return rules, err
}

// ParsePattern reads a pattern as a command line gives it: { 48 8b ?? } are
// bytes, /…/ with flags behind it is a regular expression, all else is a text.
func ParsePattern(s string, m Modifiers) (String, error) {
	out := String{ID: "$", Text: s, Modifiers: m, at: Pos{1, 1}}
	t := strings.TrimSpace(s)
	switch {
	case strings.HasPrefix(t, "{") && strings.HasSuffix(t, "}"):
		out.Kind, out.Text = Bytes, t[1:len(t)-1]
	case len(t) > 1 && t[0] == '/':
		text, flags, n, err := regexEnd(t, out.at)
		if err != nil || n != len(t) || strings.Trim(flags, "is") != "" {
			break // a path
		}
		out.Kind, out.Text = Regex, text
		out.flags(flags)
	}
	_, err := out.matchers()
	return out, err
}

// NewRule makes a rule that holds wherever one of its patterns is.
func NewRule(name string, list ...String) *Rule {
	return &Rule{Name: name, Strings: list, cond: of{min: 1, set: all(len(list))}}
}

// flags sets what the letters behind a regular expression say; ok is false if
// one of them is not known.
func (s *String) flags(letters string) (ok bool) {
	for _, c := range letters {
		switch c {
		case 'i':
			s.NoCase = true
		case 's':
			s.DotAll = true
		default:
			return false
		}
	}
	return true
}

// parser reads rules.
type parser struct {
	lex   *lexer
	tok   token
	rule  *Rule
	depth int
}

func (p *parser) advance() (err error) {
	p.tok, err = p.lex.next(false)
	return err
}

func (p *parser) unexpected(want string) error {
	return errAt(p.tok.pos, "%s stands where %s should", p.tok, want)
}

// is reports whether the token is a word or a sign.
func (p *parser) is(text string) bool {
	return (p.tok.kind == tokWord || p.tok.kind == tokOther) && p.tok.text == text
}

// take passes a word or a sign that must stand there.
func (p *parser) take(text string) error {
	if !p.is(text) {
		return p.unexpected("\"" + text + "\"")
	}
	return p.advance()
}

func (p *parser) rules() ([]*Rule, error) {
	var out []*Rule
	if err := p.advance(); err != nil {
		return nil, err
	}
	for p.tok.kind != tokEnd {
		if len(out) == maxRules {
			return nil, errAt(p.tok.pos, "more than %d rules", maxRules)
		}
		switch {
		case p.is("import"), p.is("include"), p.is("private"), p.is("global"):
			return nil, errAt(p.tok.pos, "%q is not supported", p.tok.text)
		case !p.is("rule"):
			return nil, p.unexpected(`"rule"`)
		}
		at := p.tok.pos
		r, err := p.oneRule()
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(out, func(o *Rule) bool { return o.Name == r.Name }) {
			return nil, errAt(at, "there is a rule %q already", r.Name)
		}
		out = append(out, r)
	}
	if out == nil {
		return nil, errAt(p.tok.pos, "there is no rule in it")
	}
	return out, nil
}

// keywords cannot be names of rules.
var keywords = []string{"all", "and", "any", "ascii", "at", "condition", "entrypoint", "false", "filesize", "for", "fullword", "global", "import", "in", "include", "meta", "nocase", "none", "not", "of", "or", "private", "rule", "strings", "them", "true", "wide"}

func (p *parser) name() (string, error) {
	if p.tok.kind != tokWord || slices.Contains(keywords, p.tok.text) {
		return "", p.unexpected("a name")
	}
	name := p.tok.text
	return name, p.advance()
}

func (p *parser) oneRule() (*Rule, error) {
	p.rule = new(Rule)
	if err := p.advance(); err != nil {
		return nil, err
	}
	var err error
	if p.rule.Name, err = p.name(); err != nil {
		return nil, err
	}
	if p.is(":") {
		if err := p.advance(); err != nil {
			return nil, err
		}
		for first := true; first || p.tok.kind == tokWord; first = false {
			tag, err := p.name()
			if err != nil {
				return nil, err
			}
			p.rule.Tags = append(p.rule.Tags, tag)
		}
	}
	if err := p.take("{"); err != nil {
		return nil, err
	}
	for _, s := range []struct {
		name string
		read func() error
	}{{"meta", p.meta}, {"strings", p.strings}} {
		if !p.is(s.name) {
			continue
		}
		if err := p.advance(); err != nil {
			return nil, err
		}
		if err := p.take(":"); err != nil {
			return nil, err
		}
		if err := s.read(); err != nil {
			return nil, err
		}
	}
	if err := p.take("condition"); err != nil {
		return nil, err
	}
	if err := p.take(":"); err != nil {
		return nil, err
	}
	if p.rule.cond, err = p.or(); err != nil {
		return nil, err
	}
	return p.rule, p.take("}")
}

func (p *parser) meta() error {
	for p.tok.kind == tokWord && !p.is("strings") && !p.is("condition") {
		m := Meta{Name: p.tok.text}
		if err := p.advance(); err != nil {
			return err
		}
		if err := p.take("="); err != nil {
			return err
		}
		minus := p.is("-")
		if minus {
			if err := p.advance(); err != nil {
				return err
			}
		}
		switch {
		case p.tok.kind == tokNumber && minus:
			m.Value = -p.tok.num
		case p.tok.kind == tokNumber:
			m.Value = p.tok.num
		case p.tok.kind == tokString && !minus:
			m.Value = p.tok.text
		case (p.is("true") || p.is("false")) && !minus:
			m.Value = p.is("true")
		default:
			return p.unexpected("a text, a number, true or false")
		}
		p.rule.Meta = append(p.rule.Meta, m)
		if err := p.advance(); err != nil {
			return err
		}
	}
	return nil
}

func (p *parser) strings() error {
	for p.tok.kind == tokID {
		s := String{ID: p.tok.text, at: p.tok.pos}
		if strings.HasSuffix(s.ID, "*") {
			return p.unexpected("the name of a pattern")
		}
		if s.ID != "$" && slices.ContainsFunc(p.rule.Strings, func(o String) bool { return o.ID == s.ID }) {
			return errAt(s.at, "there is a pattern %s already", s.ID)
		}
		if err := p.advance(); err != nil {
			return err
		}
		if !p.is("=") {
			return p.unexpected(`"="`)
		}
		t, err := p.lex.next(true)
		if err != nil {
			return err
		}
		switch p.tok = t; t.kind {
		case tokString:
			s.Kind = Text
		case tokHex:
			s.Kind = Bytes
		case tokRegex:
			s.Kind = Regex
			if !s.flags(t.flag) {
				return errAt(t.pos, "the flags of a regular expression are i and s, not %q", t.flag)
			}
		default:
			return p.unexpected("a text, bytes in braces or a regular expression")
		}
		s.Text, s.at = t.text, t.pos
		if err := p.advance(); err != nil {
			return err
		}
		if err := p.modifiers(&s); err != nil {
			return err
		}
		if _, err := s.matchers(); err != nil {
			return err
		}
		if len(p.rule.Strings) == maxStrings {
			return errAt(s.at, "more than %d patterns", maxStrings)
		}
		p.rule.Strings = append(p.rule.Strings, s)
	}
	if len(p.rule.Strings) == 0 {
		return p.unexpected("a pattern ($a = ...)")
	}
	return nil
}

func (p *parser) modifiers(s *String) error {
	for p.tok.kind == tokWord && !p.is("condition") {
		if s.Kind == Bytes {
			return errAt(p.tok.pos, "bytes have no modifier %q", p.tok.text)
		}
		switch p.tok.text {
		case "nocase":
			s.NoCase = true
		case "wide":
			s.Wide = true
		case "ascii":
			s.ASCII = true
		case "fullword":
			s.FullWord = true
		default:
			return errAt(p.tok.pos, "the modifier %q is not supported: there is nocase, wide, ascii, fullword", p.tok.text)
		}
		if err := p.advance(); err != nil {
			return err
		}
	}
	return nil
}
