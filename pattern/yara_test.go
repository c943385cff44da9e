package pattern

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"vmscope/internal/guestlab"
)

// TestYARA has YARA itself read the same rules and search the same memory.
func TestYARA(t *testing.T) {
	guestlab.Need(t, "yara")
	r := rand.New(rand.NewPCG(11, 12))
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	word := func(n int) string {
		b := make([]byte, n)
		for i := range b {
			b[i] = "abcAB1 "[r.IntN(7)]
		}
		return string(b)
	}
	hexes := func(n int) string {
		var b strings.Builder
		for i := range n {
			c := "abcAB1 "[r.IntN(7)]
			switch h := fmt.Sprintf("%02X ", c); {
			case i == 0 || i == n-1:
				b.WriteString(h)
			default:
				b.WriteString(pick(h, h, h, "?? ", h[:1]+"? ", "?"+h[1:]+" ", h+"[1-3] ", h+"[2] ", "("+h+"| 61 62 ) "))
			}
		}
		return b.String()
	}
	modifiers := func() (out string) {
		for _, m := range []string{"nocase", "wide", "ascii", "fullword"} {
			if r.IntN(3) == 0 {
				out += " " + m
			}
		}
		return out
	}
	regex := func() string {
		a, b := word(3), word(2)
		return "/" + pick(a+"[a-c]{1,3}"+b, a+"("+b+"|c+)1", a+".?"+b, "[ab]"+a+`\w`, a+`\x41+`+b, a+b+"?[^a]") + "/" + pick("", "i", "s", "is")
	}
	dir := t.TempDir()
	data := make([]byte, 30000)
	places := 0
	for round := range 20 {
		for i := range data {
			data[i] = "abcAB1 \x00\n"[r.IntN(9)]
			if i%2 == 1 && i/1000%2 == 1 {
				data[i] = 0 // wide
			}
		}
		var rules strings.Builder
		for i := range 20 {
			condition := pick("any of them", "all of them", "$a and not $b", "#a > 3 or $c", "2 of ($a, $c)", "#a == #b", "none of ($b, $c)", "1 of them and #c < 2", "not (any of ($a*)) or (true and $b)")
			fmt.Fprintf(&rules, "rule r%d { meta: n = %d strings: $a = %q%s $b = { %s} $c = %s%s condition: (%s) and #a >= 0 and #b >= 0 and #c >= 0 }\n",
				i, i, word(3+r.IntN(4)), modifiers(), hexes(3+r.IntN(4)), regex(), modifiers(), condition)
		}
		places += compareYARA(t, dir, round, rules.String(), data)
		if t.Failed() {
			return
		}
	}
	if places < 2000 {
		t.Errorf("only %d places", places)
	}
}

func compareYARA(t *testing.T, dir string, round int, text string, data []byte) int {
	t.Helper()
	rules, err := ParseRules("rules", text)
	if err != nil {
		t.Fatal(err)
	}
	set, err := Compile(rules)
	if err != nil {
		t.Fatal(err)
	}
	count := make([][]int, len(rules))
	at := make([]map[string]bool, len(rules))
	for i, r := range rules {
		count[i], at[i] = make([]int, len(r.Strings)), map[string]bool{}
	}
	set.Scanner().Scan(data, 0, len(data), func(m Match) {
		key := fmt.Sprintf("%#x:%s", m.Start, rules[m.Rule].Strings[m.String].ID)
		if !at[m.Rule][key] { // as it is and wide at once
			at[m.Rule][key] = true
			count[m.Rule][m.String]++
		}
	})
	ruleFile, dataFile := filepath.Join(dir, "rules"), filepath.Join(dir, "data")
	if err := os.WriteFile(ruleFile, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dataFile, data, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("yara", "-w", "-s", ruleFile, dataFile).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	theirs := make([]map[string]bool, len(rules))
	current := -1
	for line := range strings.Lines(string(out)) {
		if n, ok := strings.CutPrefix(line, "r"); ok {
			n, _, _ = strings.Cut(n, " ")
			if current, err = strconv.Atoi(n); err != nil {
				t.Fatal(line)
			}
			theirs[current] = map[string]bool{}
			continue
		}
		if f := strings.SplitN(line, ":", 3); len(f) == 3 && strings.HasPrefix(line, "0x") && current >= 0 {
			theirs[current][f[0]+":"+f[1]] = true
		}
	}
	n := 0
	for i, r := range rules {
		if holds := r.Holds(count[i]); holds != (theirs[i] != nil) {
			t.Errorf("round %d: %v, YARA says %v, of\n%s%v", round, holds, !holds, strings.Split(text, "\n")[i], count[i])
		}
		if theirs[i] == nil {
			continue
		}
		n += len(theirs[i])
		var only []string
		for k := range at[i] {
			if !theirs[i][k] {
				only = append(only, "ours "+k)
			}
		}
		for k := range theirs[i] {
			if !at[i][k] {
				only = append(only, "theirs "+k)
			}
		}
		if slices.Sort(only); only != nil {
			t.Errorf("round %d: %d of %d places differ, %v, of\n%s", round, len(only), len(theirs[i]), only[:min(len(only), 5)], strings.Split(text, "\n")[i])
		}
	}
	return n
}
