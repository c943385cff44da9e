package pattern

import (
	"slices"
	"strings"
)

// condition is what must be true of a rule's patterns. Count says how often each
// was found.
type condition interface{ holds(count []int) bool }

type (
	constant bool
	not      struct{ c condition }
	both     struct{ a, b condition } // and
	either   struct{ a, b condition } // or
	found    int                      // of a pattern
	// of is true if at least min of a set were found, or none.
	of struct {
		min  int
		none bool
		set  []int
	}
	compare struct {
		op          string
		left, right operand
	}
	// operand is a number, or how often a pattern was found.
	operand struct {
		number int64
		count  int
		counts bool
	}
)

func (c constant) holds([]int) bool     { return bool(c) }
func (c not) holds(count []int) bool    { return !c.c.holds(count) }
func (c both) holds(count []int) bool   { return c.a.holds(count) && c.b.holds(count) }
func (c either) holds(count []int) bool { return c.a.holds(count) || c.b.holds(count) }
func (c found) holds(count []int) bool  { return count[c] > 0 }

func (c of) holds(count []int) bool {
	n := 0
	for _, i := range c.set {
		if count[i] > 0 {
			n++
		}
	}
	if c.none {
		return n == 0
	}
	return n >= c.min
}

func (o operand) value(count []int) int64 {
	if o.counts {
		return int64(count[o.count])
	}
	return o.number
}

func (c compare) holds(count []int) bool {
	a, b := c.left.value(count), c.right.value(count)
	switch c.op {
	case "<":
		return a < b
	case "<=":
		return a <= b
	case ">":
		return a > b
	case ">=":
		return a >= b
	case "==":
		return a == b
	}
	return a != b
}

// Holds reports whether the rule's condition is true; count says how often each
// of its Strings was found.
func (r *Rule) Holds(count []int) bool { return r.cond.holds(count) }

// all are the numbers below n.
func all(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

func (p *parser) or() (condition, error) {
	return p.chain("or", p.and, func(a, b condition) condition { return either{a, b} })
}

func (p *parser) and() (condition, error) {
	return p.chain("and", p.unary, func(a, b condition) condition { return both{a, b} })
}

func (p *parser) chain(word string, part func() (condition, error), join func(a, b condition) condition) (condition, error) {
	c, err := part()
	for n := 0; err == nil && p.is(word); n++ {
		if n == maxStrings {
			return nil, errAt(p.tok.pos, "a condition of more than %d parts", maxStrings)
		}
		if err = p.advance(); err != nil {
			break
		}
		var d condition
		if d, err = part(); err == nil {
			c = join(c, d)
		}
	}
	return c, err
}

func (p *parser) unary() (condition, error) {
	if p.depth++; p.depth > maxNesting {
		return nil, errAt(p.tok.pos, "a condition that is more than %d deep", maxNesting)
	}
	defer func() { p.depth-- }()
	switch at := p.tok.pos; {
	case p.is("not"):
		if err := p.advance(); err != nil {
			return nil, err
		}
		c, err := p.unary()
		return not{c}, err
	case p.is("("):
		if err := p.advance(); err != nil {
			return nil, err
		}
		c, err := p.or()
		if err != nil {
			return nil, err
		}
		return c, p.take(")")
	case p.is("true"), p.is("false"):
		return constant(p.is("true")), p.advance()
	case p.is("any"), p.is("all"), p.is("none"):
		word := p.tok.text
		if err := p.advance(); err != nil {
			return nil, err
		}
		c, err := p.of()
		switch word {
		case "any":
			c.min = 1
		case "all":
			c.min = len(c.set)
		case "none":
			c.none = true
		}
		return c, err
	case p.tok.kind == tokNumber:
		left := operand{number: p.tok.num}
		if err := p.advance(); err != nil {
			return nil, err
		}
		if !p.is("of") {
			return p.compare(left)
		}
		c, err := p.of()
		if c.min = int(min(left.number, maxStrings+1)); err == nil && c.min > len(c.set) {
			err = errAt(at, "%d of %d patterns can never be", left.number, len(c.set))
		}
		if c.min == 0 {
			c.none = true // as YARA has it
		}
		return c, err
	case p.tok.kind == tokCount:
		left, err := p.operand()
		if err != nil {
			return nil, err
		}
		return p.compare(left)
	case p.tok.kind == tokID:
		set, err := p.named()
		if err != nil {
			return nil, err
		}
		if strings.HasSuffix(p.tok.text, "*") || p.tok.text == "$" {
			return nil, p.unexpected("the name of one pattern")
		}
		if err := p.advance(); err != nil {
			return nil, err
		}
		if p.is("at") || p.is("in") {
			return nil, errAt(p.tok.pos, "%q is not supported: memory has no offsets as a file has", p.tok.text)
		}
		return found(set[0]), nil
	case p.tok.kind == tokWord:
		return nil, errAt(at, "%q is not supported in a condition: there is and, or, not, any of, all of, none of, N of, $a, #a, true, false", p.tok.text)
	}
	return nil, p.unexpected("a condition")
}

// of reads the set behind a number: them, or ($a, $b*).
func (p *parser) of() (c of, err error) {
	if err := p.take("of"); err != nil {
		return c, err
	}
	if p.is("them") {
		if len(p.rule.Strings) == 0 {
			return c, errAt(p.tok.pos, "the rule has no patterns")
		}
		c.set = all(len(p.rule.Strings))
		return c, p.behindOf()
	}
	if err := p.take("("); err != nil {
		return c, err
	}
	for {
		if p.tok.kind != tokID {
			return c, p.unexpected("the name of a pattern")
		}
		set, err := p.named()
		if err != nil {
			return c, err
		}
		for _, i := range set {
			if !slices.Contains(c.set, i) {
				c.set = append(c.set, i)
			}
		}
		if err := p.advance(); err != nil {
			return c, err
		}
		if !p.is(",") {
			break
		}
		if err := p.advance(); err != nil {
			return c, err
		}
	}
	if !p.is(")") {
		return c, p.unexpected(`")"`)
	}
	return c, p.behindOf()
}

// behindOf passes the end of a set, behind which nothing may narrow it.
func (p *parser) behindOf() error {
	if err := p.advance(); err != nil {
		return err
	}
	if p.is("at") || p.is("in") {
		return errAt(p.tok.pos, "%q is not supported: memory has no offsets as a file has", p.tok.text)
	}
	return nil
}

// named are the patterns that the token names.
func (p *parser) named() ([]int, error) {
	prefix, many := strings.CutSuffix(p.tok.text, "*")
	var set []int
	for i, s := range p.rule.Strings {
		if s.ID == p.tok.text || many && strings.HasPrefix(s.ID, prefix) {
			set = append(set, i)
		}
	}
	if set == nil {
		return nil, errAt(p.tok.pos, "the rule has no pattern %s", p.tok.text)
	}
	return set, nil
}

func (p *parser) operand() (o operand, err error) {
	switch p.tok.kind {
	case tokNumber:
		o.number = p.tok.num
	case tokCount:
		id := "$" + p.tok.text[1:]
		o.count = slices.IndexFunc(p.rule.Strings, func(s String) bool { return s.ID == id })
		if o.counts = true; o.count < 0 || id == "$" {
			return o, errAt(p.tok.pos, "the rule has no pattern %s", id)
		}
	default:
		return o, p.unexpected("a number or #a")
	}
	if err := p.advance(); err != nil {
		return o, err
	}
	if p.is("in") {
		return o, errAt(p.tok.pos, `"in" is not supported: memory has no offsets as a file has`)
	}
	return o, nil
}

func (p *parser) compare(left operand) (condition, error) {
	ops := []string{"<", "<=", ">", ">=", "==", "!="}
	if p.tok.kind != tokOther || !slices.Contains(ops, p.tok.text) {
		return nil, p.unexpected("a comparison (" + strings.Join(ops, " ") + ")")
	}
	op := p.tok.text
	if err := p.advance(); err != nil {
		return nil, err
	}
	right, err := p.operand()
	return compare{op, left, right}, err
}
