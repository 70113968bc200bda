"""Networks on which a property once failed: each is tried by every property in every run."""

from .network import Network

FOUND = [
    # the input of the sigmoid, which only relevance needs, was overwritten: the ledger did not close
    Network(
        """
        self.linear0 = nn.Linear(1, 3, bias=False)
        """,
        """
        x *= x.sigmoid()
        x = self.linear0(x)
        """,
        (1,),
    ),
    # rules for the first layer lost what constants next to the input got
    Network(
        """
        self.token = nn.Parameter(torch.randn(1, 1, 1))
        self.conv1d1 = nn.Conv1d(1, 1, 3, padding=1)
        self.linear5 = nn.Linear(2, 3)
        """,
        """
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        x = self.conv1d1(x.transpose(1, 2)).transpose(1, 2)
        x = x.relu().flatten(1)
        x = self.linear5(x)
        """,
        (1, 1),
    ),
    # rolled rows, then some between them, were taken for a grid: grad_cam ended with an error of torch
    Network(
        """
        self.convtranspose2d1 = nn.ConvTranspose2d(1, 1, 1, 2)
        self.linear2 = nn.Linear(9, 3)
        """,
        """
        x = x.roll(1, 2)
        x = self.convtranspose2d1(x)
        x = x.flatten(1)
        x = self.linear2(x)
        """,
        (1, 2, 2),
    ),
]
