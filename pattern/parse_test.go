package pattern

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

const example = `
// A comment.
rule implant : linux rootkit {
	meta:
		author = "nobody" /* another */
		score = -7
		seen = true
	strings:
		$a = "ev\x69l \"quoted\"\\" nocase
		$b1 = { 48 8b ?? [2-4] ( c3 | cb ) } // in braces
		$b2 = /ev[i/]l\/(one|two)/is wide ascii fullword
		$ = "without a name"
	condition:
		$a and not $b1 or 2 of ($b*, $a) and (#a > 3 or 0x10 <= #b1) or all of them
}
rule second { condition: true }
`

func TestParseRules(t *testing.T) {
	rules, err := ParseRules("file", example)
	if err != nil {
		t.Fatal(err)
	}
	r := rules[0]
	if len(rules) != 2 || r.Name != "implant" || fmt.Sprint(r.Tags) != "[linux rootkit]" || fmt.Sprint(r.Meta) != "[{author nobody} {score -7} {seen true}]" {
		t.Errorf("%+v", r)
	}
	want := []String{
		{ID: "$a", Kind: Text, Text: `evil "quoted"\`, Modifiers: Modifiers{NoCase: true}},
		{ID: "$b1", Kind: Bytes, Text: ` 48 8b ?? [2-4] ( c3 | cb ) `},
		{ID: "$b2", Kind: Regex, Text: `ev[i/]l/(one|two)`, Modifiers: Modifiers{NoCase: true, Wide: true, ASCII: true, FullWord: true, DotAll: true}},
		{ID: "$", Kind: Text, Text: "without a name"},
	}
	for i, s := range r.Strings {
		if s.at = (Pos{}); s != want[i] {
			t.Errorf("%+v, want %+v", s, want[i])
		}
	}
	for _, c := range []struct {
		count []int
		holds bool
	}{
		{[]int{0, 0, 0, 0}, false}, {[]int{1, 0, 0, 0}, true}, {[]int{1, 1, 0, 0}, false}, {[]int{4, 1, 0, 0}, true},
		{[]int{0, 1, 1, 0}, false}, {[]int{0, 16, 1, 0}, true}, {[]int{1, 1, 1, 1}, true},
	} {
		if r.Holds(c.count) != c.holds {
			t.Errorf("%v: %v", c.count, !c.holds)
		}
	}
	if !rules[1].Holds(nil) {
		t.Error("true is false")
	}
}

func TestConditions(t *testing.T) {
	for text, want := range map[string][3]bool{ // of nothing, $a found, both found twice
		"any of them":                {false, true, true},
		"all of them":                {false, false, true},
		"none of them":               {true, false, false},
		"1 of them":                  {false, true, true},
		"0 of them":                  {true, false, false},
		"2 of ($a, $b)":              {false, false, true},
		"1 of ($b)":                  {false, false, true},
		"$a or $b":                   {false, true, true},
		"$a and $b":                  {false, false, true},
		"not $a":                     {true, false, false},
		"not not $a":                 {false, true, true},
		"#a == 2":                    {false, false, true},
		"#a != 2":                    {true, true, false},
		"#a < 2":                     {true, true, false},
		"#a >= #b and 1 <= #b":       {false, false, true},
		"2 > #a":                     {true, true, false},
		"false or true and $a":       {false, true, true},
		"(false or true) and not $b": {true, true, false},
	} {
		rules, err := ParseRules("", `rule r { strings: $a = "aa" $b = "bb" condition: `+text+` }`)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		for i, count := range [][]int{{0, 0}, {1, 0}, {2, 2}} {
			if rules[0].Holds(count) != want[i] {
				t.Errorf("%s with %v: %v", text, count, !want[i])
			}
		}
	}
}

// TestRuleErrors demands that what is not supported is told, with its place.
func TestRuleErrors(t *testing.T) {
	in := func(strings, condition string) string {
		return "rule r {\n strings:\n  " + strings + "\n condition:\n  " + condition + "\n}"
	}
	a := `$a = "aa"`
	for text, want := range map[string]string{
		"":                           "f:1:1: there is no rule",
		"import \"pe\"\nrule r {}":   `f:1:1: "import" is not supported`,
		`include "x"`:                `f:1:1: "include" is not supported`,
		"private rule r {}":          `f:1:1: "private" is not supported`,
		"global rule r {}":           `f:1:1: "global" is not supported`,
		"rul r {}":                   `f:1:1: "rul" stands where "rule" should`,
		"rule 7 {}":                  `f:1:6: "7" stands where a name should`,
		"rule of {}":                 `f:1:6: "of" stands where a name should`,
		"rule r {\n\tcondition: x }": `f:2:13: "x" is not supported in a condition`,
		"rule r { condition: true":   `f:1:25: the end of the file stands where "}" should`,
		"rule r { condition: true } rule r { condition: true }": `f:1:28: there is a rule "r" already`,
		"rule r { /* condition":                                 "f:1:10: a comment that does not end",
		"rule r { strings: condition: true }":                   `f:1:19: "condition" stands where a pattern`,
		"rule r { meta: a = condition: true }":                  `f:1:20: "condition" stands where a text`,
		"rule r { condition: any of them }":                     "f:1:28: the rule has no patterns",
		in(a+" xor", "$a"):                                      `f:3:13: the modifier "xor" is not supported`,
		in(a+" base64", "$a"):                                   `f:3:13: the modifier "base64" is not supported`,
		in(a+" private", "$a"):                                  `f:3:13: the modifier "private" is not supported`,
		in("$a = { 4g }", "$a"):                                 `f:3:10: "4g" is no byte`,
		in("$a = {\n\n   4? ?? ~00 }", "$a"):                    `f:5:10: "~0" is no byte`,
		in("$a = { 44 [2-] 55 }", "$a"):                         `f:3:13: [2-] is no gap`,
		in("$a = { 44 } wide", "$a"):                            `f:3:15: bytes have no modifier "wide"`,
		in("$a = /x/m", "$a"):                                   `f:3:8: the flags of a regular expression are i and s`,
		in("$a = /(x/", "$a"):                                   "f:3:8: missing closing )",
		in("$a = /^x/", "$a"):                                   "f:3:8: ^, $",
		in("$a = /x*/", "$a"):                                   "f:3:8: a pattern that matches nothing",
		in("$a = /xy", "$a"):                                    "f:3:8: a regular expression that does not end",
		in(`$a = "x`, "$a"):                                     "f:3:8: a text that does not end",
		in(`$a = "x\q"`, "$a"):                                  `f:3:10: a text has`,
		in(`$a = "x\x4g"`, "$a"):                                `f:3:10: \x is followed`,
		in(`$a = ""`, "$a"):                                     "f:3:8: an empty pattern",
		in(a+" "+a, "$a"):                                       "f:3:13: there is a pattern $a already",
		in(a, "$b"):                                             "f:5:3: the rule has no pattern $b",
		in(a, "#b > 1"):                                         "f:5:3: the rule has no pattern $b",
		in(a, "$a at 0"):                                        `f:5:6: "at" is not supported`,
		in(a, "$a in (0..100)"):                                 `f:5:6: "in" is not supported`,
		in(a, "any of them in (0..9)"):                          `f:5:15: "in" is not supported`,
		in(a, "#a in (0..9) == 1"):                              `f:5:6: "in" is not supported`,
		in(a, "filesize < 10KB"):                                `f:5:3: "filesize" is not supported`,
		in(a, "uint16(0) == 0x5a4d and $a"):                     `f:5:3: "uint16" is not supported`,
		in(a, "for any of them : ( $ at 0 )"):                   `f:5:3: "for" is not supported`,
		in(a, "@a[1] < 10"):                                     `f:5:3: "@" stands where a condition`,
		in(a, "#a + 1 > 2"):                                     `f:5:6: "+" stands where a comparison`,
		in(a, "50% of them"):                                    `f:5:5: "%" stands where a comparison`,
		in(a, "2 of them"):                                      "f:5:3: 2 of 1 patterns can never be",
		in(a, "any of ($b*)"):                                   "f:5:11: the rule has no pattern $b*",
		in(a, "any of (other)"):                                 `f:5:11: "other" stands where the name of a pattern`,
		in(a, "$a and"):                                         `f:6:1: "}" stands where a condition should`,
		in(a, "($a"):                                            `f:6:1: "}" stands where ")" should`,
		in(a, "#a"):                                             `f:6:1: "}" stands where a comparison`,
		in(a, "#a > 99999999999999999999"):                      `f:5:8: "99999999999999999999" is no number`,
		in(a, strings.Repeat("(", 200)):                         "f:5:103: a condition that is more than 100 deep",
		in(a, strings.Repeat("not ", 200)+"$a"):                 "more than 100 deep",
	} {
		_, err := ParseRules("f", text)
		var e *Error
		if !errors.As(err, &e) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q:\n have %v\n want %s", text, err, want)
		}
	}
}

// FuzzParseRules demands that rules can be read, or are refused at a place in the
// file.
func FuzzParseRules(f *testing.F) {
	f.Add(example)
	f.Add(`rule r { strings: $a = { 4? [1-2] ( 01 | 02 ) } condition: #a > 3KB }`)
	f.Add(`rule r { condition: not (true or false) }`)
	f.Fuzz(func(t *testing.T, text string) {
		rules, err := ParseRules("f", text)
		var e *Error
		switch {
		case err == nil && len(rules) == 0:
			t.Fatal("neither a rule nor an error")
		case err != nil && (!errors.As(err, &e) || e.Line < 1 || e.Col < 1 || e.Line > strings.Count(text, "\n")+1):
			t.Fatalf("%v", err)
		}
		for _, r := range rules {
			r.Holds(make([]int, len(r.Strings)))
		}
	})
}
