package chaos

import "slices"

// Reason is why redial is behind others in some values of a scenario.
type Reason struct {
	Keys []Key
	Why  string
}

// usual are the reasons that are the same in every scenario.
var usual = []Reason{
	{[]Key{CPU}, "Calls cost the same while nothing breaks, see `cd bench && go run ./cmd/overhead`. It is what is done about connections when something does: they are proved, and made anew before they are asked for."},
}

// Because returns why redial is behind in a value of the scenario, as far as that is known.
func (s *Scenario) Because(k Key) string {
	for _, reasons := range [][]Reason{s.Behind, usual} {
		for _, r := range reasons {
			if slices.Contains(r.Keys, k) {
				return r.Why
			}
		}
	}
	return "not known"
}
