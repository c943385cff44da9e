package pattern

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// places are the matches of one pattern in buf, as "start+length".
func places(t testing.TB, s String, buf []byte, from, to int) []string {
	t.Helper()
	set, err := Compile([]*Rule{NewRule("r", s)})
	if err != nil {
		t.Fatalf("%+v: %v", s, err)
	}
	var out []string
	set.Scanner().Scan(buf, from, to, func(m Match) {
		out = append(out, fmt.Sprintf("%d+%d", m.Start, m.End-m.Start))
	})
	slices.Sort(out)
	return out
}

func pattern(t testing.TB, text string, m Modifiers) String {
	t.Helper()
	s, err := ParsePattern(text, m)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return s
}

func TestScan(t *testing.T) {
	wide := func(s string) string { return strings.Join(strings.Split(s, ""), "\x00") + "\x00" }
	for _, c := range []struct {
		pattern string
		m       Modifiers
		buf     string
		want    string
	}{
		{"evil", Modifiers{}, "an evil, Evil devil", "15+4 3+4"},
		{"evil", Modifiers{NoCase: true}, "an evil, Evil devil", "15+4 3+4 9+4"},
		{"evil", Modifiers{FullWord: true}, "an evil, Evil devil evil", "20+4 3+4"},
		{"evil", Modifiers{FullWord: true}, "evil_", "0+4"},
		{"evil", Modifiers{Wide: true}, "evil " + wide("evil"), "5+8"},
		{"evil", Modifiers{Wide: true, ASCII: true}, "evil " + wide("evil"), "0+4 5+8"},
		{"evil", Modifiers{Wide: true, FullWord: true}, wide("evil devil evil."), "0+8 22+8"},
		{"e", Modifiers{}, "eve", "0+1 2+1"},
		{"aa", Modifiers{}, "aaaa", "0+2 1+2 2+2"},
		{"{ 48 8b ?? 05 }", Modifiers{}, "\x48\x8b\x01\x05\x48\x8b\x05\x05", "0+4 4+4"},
		{"{ 4? 8b }", Modifiers{}, "\x48\x8b\x5b\x8b\x4f\x8b", "0+2 4+2"},
		{"{ ?b 48 }", Modifiers{}, "\x8b\x48\x8c\x48", "0+2"},
		{"{48[2]c3}", Modifiers{}, "\x48\x01\x02\xc3\xc3", "0+4"},
		{"{ 48 [1-3] c3 }", Modifiers{}, "\x48\x01\x02\xc3\xc3", "0+4"},
		{"{ 48 ( 01 | 02 03 | 0? [1] 05 ) c3 }", Modifiers{}, "\x48\x01\xc3\x48\x02\x03\xc3\x48\x04\x09\x05\xc3", "0+3 3+4 7+5"},
		{"{ ?? ?? 90 }", Modifiers{}, "\x01\x02\x90", "0+3"},
		{"/ev[ai]+l/", Modifiers{}, "evil evaail evl", "0+4 5+6"},
		{"/EV.L/i", Modifiers{}, "evil ev\nl", "0+4"},
		{"/ev.l/s", Modifiers{}, "evil ev\nl", "0+4 5+4"},
		{`/\bevil\b/`, Modifiers{}, "evil devil evil", "0+4 11+4"},
		{`/ev(il|en)/`, Modifiers{}, "evil even ever", "0+4 5+4"},
		{`/[0-9]{2,4}-evil/`, Modifiers{}, "12345-evil", "1+9 2+8 3+7"},
		{`/ev[^\n]il\xff/`, Modifiers{}, "ev\xfeil\xff", "0+6"},
		{"/é+/", Modifiers{}, "éé", "0+2 2+2"},
		{"/evil/", Modifiers{Wide: true}, "evil" + wide("evil"), "4+8"},
		{"/ev.l/i", Modifiers{Wide: true}, wide("EVIL"), "0+8"},
		{"/[a-z]+-evil/", Modifiers{}, "xy-evil", "0+7 1+6"},
		{"/a.*evil/", Modifiers{}, "a evil", "0+6"},
		{"/etc/passwd", Modifiers{}, "x/etc/passwd", "1+11"},
	} {
		s := pattern(t, c.pattern, c.m)
		if got := strings.Join(places(t, s, []byte(c.buf), 0, len(c.buf)), " "); got != c.want {
			t.Errorf("%s %+v in %q: %s, want %s", c.pattern, c.m, c.buf, got, c.want)
		}
	}
}

func TestPatternErrors(t *testing.T) {
	for text, want := range map[string]string{
		"":                        "empty",
		"{ }":                     "a byte is missing",
		"{ 4 }":                   "no byte",
		"{ gg }":                  "no byte",
		"{ ?? ?? }":               "always the same",
		"{ 48 [2 }":               "missing",
		"{ 48 [4-2] c3 }":         "no gap",
		"{ 48 [-] c3 }":           "no gap",
		"{ [2] c3 }":              "a gap stands",
		"{ c3 [2] }":              "a byte is missing",
		"{ c3 ( 01 }":             "missing",
		"{ c3 ) }":                "should",
		"{ c3 | 01 }":             "should",
		"{ c3 ( | 01 ) }":         "should",
		"/a*/":                    "nothing at all",
		"/(a|b/":                  "missing closing )",
		"/^evil/":                 "not supported",
		"/evil$/":                 "not supported",
		"/(?=evil)/":              "invalid",
		"/[^a][^b]/":              "always the same",
		"/.{1000}.{1000}abc/":     "at least 2003 bytes",
		strings.Repeat("x", 2000): "at most",
	} {
		_, err := ParsePattern(text, Modifiers{})
		if err == nil || !strings.Contains(err.Error(), want) && !strings.Contains(err.Error(), "the most is") {
			t.Errorf("%.30q: %v, want %q", text, err, want)
		}
	}
}

// naive finds the matches of a pattern by trying each place.
func naive(s String, buf []byte) []string {
	var out []string
	chars := make([]rune, len(buf))
	for i, c := range buf {
		chars[i] = rune(c)
	}
	var re *regexp.Regexp
	if s.Kind == Regex {
		flags := "s"
		if s.NoCase {
			flags += "i"
		}
		re = regexp.MustCompile("^(?" + flags + ":" + s.Text + ")")
	}
	for i := range buf {
		n := 0
		switch s.Kind {
		case Text:
			if len(buf)-i >= len(s.Text) && (string(buf[i:i+len(s.Text)]) == s.Text || s.NoCase && strings.EqualFold(string(buf[i:i+len(s.Text)]), s.Text)) {
				n = len(s.Text)
			}
		case Regex:
			if m := re.FindString(string(chars[i:])); m != "" {
				n = len([]rune(m))
			}
		}
		if n > 0 {
			out = append(out, fmt.Sprintf("%d+%d", i, n))
		}
	}
	slices.Sort(out)
	return out
}

// TestScanOracle searches random memory of few letters for many patterns at once
// and compares with trying each place, also cut into windows.
func TestScanOracle(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	letters := "abcd\x00"
	word := func(n int) string {
		b := make([]byte, n)
		for i := range b {
			b[i] = letters[r.IntN(len(letters))]
		}
		return string(b)
	}
	quote := func(s string) string { return strings.ReplaceAll(s, "\x00", `\x00`) }
	total := 0
	for round := range 200 {
		buf := []byte(word(600))
		var list []String
		for range 1 + r.IntN(6) {
			s := String{Text: word(1 + r.IntN(10)), Modifiers: Modifiers{NoCase: r.IntN(2) == 0}}
			if r.IntN(2) == 0 {
				s.Kind = Regex
				s.DotAll = true
				s.Text = []string{
					quote(word(2)) + ".{1,3}" + quote(word(2)), quote(word(1)) + "+" + quote(word(2)), "[ab]" + quote(word(3)) + "?d",
					"(" + quote(word(2)) + "|" + quote(word(3)) + "c*)b", "[a-c]{2,3}" + quote(word(2)), quote(word(2)) + "(a|bc){0,3}", "[bc]+" + quote(word(3)), "(?:ab|c.)" + quote(word(1)) + "[^a]",
				}[r.IntN(8)]
			}
			if _, err := s.matchers(); err == nil {
				list = append(list, s)
			}
		}
		if list == nil {
			continue
		}
		set, err := Compile([]*Rule{NewRule("r", list...)})
		if err != nil {
			t.Fatal(err)
		}
		got := make([][]string, len(list))
		sc := set.Scanner()
		cut := r.IntN(len(buf))
		for _, w := range [][2]int{{0, cut}, {cut, len(buf)}} {
			sc.Scan(buf, w[0], w[1], func(m Match) {
				got[m.String] = append(got[m.String], fmt.Sprintf("%d+%d", m.Start, m.End-m.Start))
			})
		}
		for i, s := range list {
			slices.Sort(got[i])
			if want := naive(s, buf); !slices.Equal(got[i], want) {
				t.Errorf("round %d: %+v in %q:\n have %v\n want %v", round, s, buf, got[i], want)
			}
			total += len(got[i])
		}
	}
	if total < 5000 {
		t.Errorf("only %d matches in all", total)
	}
}

// TestScanMany searches for more patterns than short grams are good for.
func TestScanMany(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	buf := make([]byte, 200_000)
	for i := range buf {
		buf[i] = "abcdefgh"[r.IntN(8)]
	}
	var list []String
	for range 1000 {
		at := r.IntN(len(buf) - 20)
		list = append(list, String{Text: strings.ToUpper(string(buf[at : at+6+r.IntN(8)])), Modifiers: Modifiers{NoCase: r.IntN(4) > 0}})
	}
	set, err := Compile([]*Rule{NewRule("r", list...)})
	if err != nil {
		t.Fatal(err)
	}
	if set.gram != longGram {
		t.Errorf("grams of %d bytes", set.gram)
	}
	got := make([]int, len(list))
	sc := set.Scanner()
	for at := 0; at < len(buf); at += 1000 {
		sc.Scan(buf, at, at+1000, func(m Match) { got[m.String]++ })
	}
	lower, total := string(buf), 0
	for i, s := range list {
		want := 0
		for at := 0; s.NoCase && at < len(lower); at++ {
			k := strings.Index(lower[at:], strings.ToLower(s.Text))
			if k < 0 {
				break
			}
			at += k
			want++
		}
		if got[i] != want {
			t.Errorf("%+v: %d times, want %d", s, got[i], want)
		}
		total += want
	}
	if total < 500 {
		t.Errorf("%d matches", total)
	}
}

// FuzzScan compares a text and its bytes in a buffer with bytes.Index.
func FuzzScan(f *testing.F) {
	f.Add([]byte("needle"), []byte("hay needle needle"), uint8(3))
	f.Add([]byte("a"), []byte("aaa"), uint8(0))
	f.Fuzz(func(t *testing.T, needle, hay []byte, cut uint8) {
		if len(needle) == 0 || len(needle) > MaxLength {
			return
		}
		s := String{Text: string(needle), at: Pos{1, 1}}
		hex := String{Kind: Bytes, Text: fmt.Sprintf("% x", needle), at: Pos{1, 1}}
		set, err := Compile([]*Rule{NewRule("r", s, hex)})
		if err != nil {
			t.Fatal(err)
		}
		found := map[[2]int]int{}
		sc := set.Scanner()
		at := min(int(cut), len(hay))
		for _, w := range [][2]int{{0, at}, {at, len(hay)}} {
			sc.Scan(hay, w[0], w[1], func(m Match) {
				if m.End-m.Start != len(needle) || m.Start < w[0] || m.Start >= w[1] {
					t.Fatalf("%+v in %v", m, w)
				}
				found[[2]int{m.String, m.Start}]++
			})
		}
		n := 0
		for i := range hay {
			if bytes.HasPrefix(hay[i:], needle) {
				n++
				if found[[2]int{0, i}] != 1 || found[[2]int{1, i}] != 1 {
					t.Fatalf("at %d: %v", i, found)
				}
			}
		}
		if len(found) != 2*n {
			t.Fatalf("%d places, found %v", n, found)
		}
	})
}

// FuzzPattern reads patterns, searches something for them, and compares regular
// expressions with package regexp.
func FuzzPattern(f *testing.F) {
	for _, s := range []string{"{ 48 8? ?? [2-4] ( c3 | cb ) }", `/ev(il|en)+[^a-c]\x41{2,3}?/i`, "text", "/(((a|b)*c){3}d)?e/s", "{ 01 ( 02 | 03 [2] 04 ) 05 }"} {
		f.Add(s, []byte("abcdevilevenAAabcdabcdd"))
	}
	f.Fuzz(func(t *testing.T, text string, buf []byte) {
		s, err := ParsePattern(text, Modifiers{})
		if err != nil || len(buf) > 200 {
			return
		}
		got := places(t, s, buf, 0, len(buf))
		if s.Kind != Regex || s.NoCase || len(text) > 60 || strings.Contains(text, `\b`) || strings.Contains(text, `\B`) {
			return
		}
		flags := "(?"
		if s.DotAll {
			flags += "s"
		}
		chars := make([]rune, len(s.Text))
		for i, c := range []byte(s.Text) {
			chars[i] = rune(c)
		}
		if re, err := regexp.Compile("^" + flags + ":" + string(chars) + ")"); err == nil {
			o := s
			o.DotAll = true
			hay := make([]rune, len(buf))
			for i, c := range buf {
				hay[i] = rune(c)
			}
			var want []string
			for i := range hay {
				if m := re.FindString(string(hay[i:])); m != "" {
					want = append(want, fmt.Sprintf("%d+%d", i, len([]rune(m))))
				}
			}
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Fatalf("%q in %q: have %v, want %v", text, buf, got, want)
			}
		}
	})
}
