// Package checks holds the pages of this directory, one for each check, for
// programs that show them.
package checks

import (
	"embed"
	"strings"
)

//go:embed *.md
var pages embed.FS

// Section is a part of a page.
type Section struct {
	Title string `json:"title"`
	Text  string `json:"text"` // Markdown, without the line of the title
}

// Path is the page of a check in the repository.
func Path(check string) string { return "docs/checks/" + check + ".md" }

// Page is the page of a check: its title and what stands below that, then its
// sections. None, if there is no such page.
func Page(check string) []Section {
	b, err := pages.ReadFile(check + ".md")
	if err != nil {
		return nil
	}
	text, ok := strings.CutPrefix(string(b), "# ")
	if !ok {
		return nil
	}
	var out []Section
	for _, part := range strings.Split(text, "\n## ") {
		title, body, _ := strings.Cut(part, "\n")
		out = append(out, Section{title, strings.Trim(body, "\n")})
	}
	return out
}
